//! Every setting of the sidecar: a flag, its `WEFT_` environment twin, and a default that works.

use clap::Args;
use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};
use weft_config::identity::ServiceName;

/// What a sidecar is told when it starts. Everything else is policy and changes while it runs.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("source of policy").args(["control_plane", "policy"]).required(true))]
pub struct Settings {
    /// Namespace of the workload beside which this sidecar stands.
    #[arg(long, env = "WEFT_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Name of the workload (its Workload document's `metadata.name`, or an instance `<name>-<n>` of it).
    #[arg(long, env = "WEFT_WORKLOAD", default_value = "workload")]
    pub workload: String,
    /// Service account that the workload's identity is made of.
    #[arg(long, env = "WEFT_SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// Trust domain of the mesh, until the control plane says otherwise.
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = "weft.local")]
    pub trust_domain: String,

    /// Control plane to take policy and certificates from, as HOST:PORT.
    #[arg(long, env = "WEFT_CONTROL_PLANE", conflicts_with = "policy", requires = "ca_file")]
    pub control_plane: Option<String>,
    /// PEM file with the mesh's CA certificates.
    #[arg(long, env = "WEFT_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// File with the join token that proves this workload to the control plane the first time.
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Directory for the last accepted policy and identity, to start from when the control plane is away, and for what
    /// a CachePolicy keeps on disk.
    #[arg(long, env = "WEFT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of the secrets that policy names, with a folder NAMESPACE/NAME for each, as mounted Kubernetes Secrets
    /// are; their files are read whenever they are needed.
    #[arg(long, env = "WEFT_SECRETS_DIR")]
    pub secrets_dir: Option<PathBuf>,

    /// Directory of policy YAML to run from without a control plane; watched for changes.
    #[arg(long, env = "WEFT_POLICY")]
    pub policy: Option<PathBuf>,
    /// PEM file with this workload's certificate chain, when there is no control plane to issue one.
    #[arg(long, env = "WEFT_CERT_FILE", requires_all = ["key_file", "ca_file"])]
    pub cert_file: Option<PathBuf>,
    /// PEM file with the private key of `--cert-file`.
    #[arg(long, env = "WEFT_KEY_FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,

    /// Where the application's outgoing calls are taken: HTTP proxy requests, CONNECT, HTTP/2 with prior knowledge.
    #[arg(long, env = "WEFT_OUTBOUND", default_value = "127.0.0.1:15001")]
    pub outbound: SocketAddr,
    /// Where peers' calls to the application are taken.
    #[arg(long, env = "WEFT_INBOUND", default_value = "0.0.0.0:15006")]
    pub inbound: SocketAddr,
    /// Address that peers reach the inbound listener at; the inbound address itself if not given.
    #[arg(long, env = "WEFT_ADVERTISE")]
    pub advertise: Option<SocketAddr>,
    /// Admin interface; must be on loopback.
    #[arg(long, env = "WEFT_ADMIN", default_value = "127.0.0.1:15000", value_parser = loopback)]
    pub admin: SocketAddr,
    /// Health and metrics for probes and Prometheus.
    #[arg(long, env = "WEFT_METRICS", default_value = "0.0.0.0:15020")]
    pub metrics: SocketAddr,
    /// Where the application takes the calls to a service port, as PORT=HOST:PORT; may be repeated. Without it: the
    /// Workload document's `appPort` on 127.0.0.1.
    #[arg(long, env = "WEFT_APP", value_delimiter = ',')]
    pub app: Vec<AppPort>,

    /// Worker threads; each has its own listeners, pools and metric shards.
    #[arg(long, env = "WEFT_WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// Log filter, as in `info` or `weft_sidecar=debug,warn`.
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log: String,
    /// Log as JSON lines.
    #[arg(long, env = "WEFT_LOG_JSON")]
    pub log_json: bool,
    /// Seconds that requests in flight are given after SIGTERM; policy's `limits.drainTimeout` if not given.
    #[arg(long, env = "WEFT_DRAIN_TIMEOUT", value_parser = seconds)]
    pub drain_timeout: Option<Duration>,
}

impl Settings {
    /// The workload's full name.
    pub fn workload_name(&self) -> ServiceName {
        ServiceName::new(self.namespace.as_str(), self.workload.as_str())
    }

    /// Where the application takes the calls to service port `port`.
    pub(crate) fn app_address(&self, port: u16, app_port: u16) -> SocketAddr {
        self.app
            .iter()
            .find(|a| a.port == port)
            .map_or_else(|| SocketAddr::from(([127, 0, 0, 1], app_port)), |a| a.address)
    }
}

/// One `--app PORT=HOST:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppPort {
    /// The service port.
    pub port: u16,
    /// Where the application listens.
    pub address: SocketAddr,
}

impl FromStr for AppPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected PORT=IP:PORT, for example 8080=127.0.0.1:3000";
        let (port, address) = text.split_once('=').ok_or(expected)?;
        Ok(Self {
            port: port.parse().map_err(|_| format!("`{port}` is no port; {expected}"))?,
            address: address.parse().map_err(|_| format!("`{address}` is no address; {expected}"))?,
        })
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "expected IP:PORT".to_owned())?;
    if !address.ip().is_loopback() {
        return Err(
            "the admin interface can change state and must be on loopback, for example 127.0.0.1:15000"
                .into(),
        );
    }
    Ok(address)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| "expected seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_port_says_what_it_expects() {
        let app: AppPort = "8080=127.0.0.1:3000".parse().expect("valid");
        assert_eq!((app.port, app.address.port()), (8080, 3000));
        assert!("8080".parse::<AppPort>().expect_err("invalid").contains("PORT=IP:PORT"));
        assert!("x=127.0.0.1:1".parse::<AppPort>().expect_err("invalid").contains("`x`"));
    }

    #[test]
    fn admin_must_be_loopback() {
        assert!(loopback("127.0.0.1:15000").is_ok());
        assert!(loopback("[::1]:15000").is_ok());
        assert!(loopback("0.0.0.0:15000").is_err());
    }
}
