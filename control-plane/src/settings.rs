//! Every setting of the control plane: flags, their environment twins, and what holds without either.

use clap::Args;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// How a control plane runs.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Directory (or single file) of policy in YAML, watched for changes; may be given more than once
    #[arg(
        long,
        env = "WEFT_CP_POLICY",
        value_name = "PATH",
        default_value = "policy",
        value_delimiter = ','
    )]
    pub policy: Vec<PathBuf>,

    /// Where the CA, the join-token key and the last known leases are kept; made with mode 0700
    #[arg(long, env = "WEFT_CP_STATE_DIR", value_name = "DIR", default_value = ".weft/control-plane")]
    pub state_dir: PathBuf,

    /// Where sidecars connect to (gRPC over TLS)
    #[arg(long, env = "WEFT_CP_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:15012")]
    pub listen: SocketAddr,

    /// Where /metrics, /ready and /live are served
    #[arg(long, env = "WEFT_CP_METRICS", value_name = "ADDR", default_value = "127.0.0.1:15014")]
    pub metrics: SocketAddr,

    /// Where the dashboard and its API are served; keep it on loopback, it asks nobody for a password
    #[arg(long, env = "WEFT_CP_DASHBOARD", value_name = "ADDR", default_value = "127.0.0.1:15080")]
    pub dashboard: SocketAddr,

    /// Trust domain of every identity
    #[arg(long, env = "WEFT_CP_TRUST_DOMAIN", value_name = "NAME", default_value = "weft.local")]
    pub trust_domain: String,

    /// Certificate of a CA to sign with, in PEM, with its chain if it is not a root; an own CA is made without it
    #[arg(long, env = "WEFT_CP_CA_CERT", value_name = "FILE", requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,

    /// Private key of that CA in PKCS#8 PEM, readable by nobody else
    #[arg(long, env = "WEFT_CP_CA_KEY", value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,

    /// More CA certificates in PEM that sidecars are to trust; watched, as `roots.pem` in the state directory is
    #[arg(long, env = "WEFT_CP_TRUST_BUNDLE", value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,

    /// How long the certificates of workloads last
    #[arg(long, env = "WEFT_CP_CERTIFICATE_TTL", value_name = "DURATION", default_value = "24h",
          value_parser = certificate_ttl)]
    pub certificate_ttl: Duration,

    /// How long a workload stays in the registry after it was last heard of
    #[arg(long, env = "WEFT_CP_LEASE_TIMEOUT", value_name = "DURATION", default_value = "5s",
          value_parser = lease_timeout)]
    pub lease_timeout: Duration,

    /// How long after a start sidecars may take to come back before the endpoints they served are withdrawn
    #[arg(long, env = "WEFT_CP_SETTLE_TIME", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub settle_time: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: vec!["policy".into()],
            state_dir: ".weft/control-plane".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 15012)),
            metrics: SocketAddr::from(([127, 0, 0, 1], 15014)),
            dashboard: SocketAddr::from(([127, 0, 0, 1], 15080)),
            trust_domain: "weft.local".into(),
            ca_cert: None,
            ca_key: None,
            trust_bundle: None,
            certificate_ttl: Duration::from_secs(24 * 3600),
            lease_timeout: Duration::from_secs(5),
            settle_time: Duration::from_secs(10),
        }
    }
}

/// Reads a duration in the Gateway API's form (GEP-2257): `24h`, `1h30m`, `5s`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration; write it like 24h, 1h30m, 5s or 500ms");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let unit = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        if number > 99_999 {
            return Err(wrong());
        }
        total += match &rest[digits..digits + unit] {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(wrong()),
        };
        rest = &rest[digits + unit..];
    }
    Ok(total)
}

fn certificate_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    if (Duration::from_secs(5)..=Duration::from_secs(90 * 24 * 3600)).contains(&ttl) {
        Ok(ttl)
    } else {
        Err("certificates may last from 5s to 2160h (90 days)".into())
    }
}

fn lease_timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text)?;
    if (Duration::from_millis(500)..=Duration::from_secs(300)).contains(&timeout) {
        Ok(timeout)
    } else {
        Err("leases may last from 500ms to 5m".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn durations_are_read_as_the_gateway_api_writes_them() {
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("1s500ms"), Ok(Duration::from_millis(1_500)));
        for bad in ["", "5", "s", "5 s", "-5s", "5d", "1.5s", "999999h", "5ß"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_flags_default_to_what_the_library_does() {
        let flags = Program::try_parse_from(["test"]).expect("parsed").settings;
        assert_eq!(format!("{flags:?}"), format!("{:?}", Settings::default()));
    }

    #[test]
    fn a_ca_certificate_needs_its_key() {
        assert!(Program::try_parse_from(["test", "--ca-cert", "a.pem"]).is_err());
        assert!(Program::try_parse_from(["test", "--ca-cert", "a.pem", "--ca-key", "a.key"]).is_ok());
    }

    #[test]
    fn certificates_may_be_as_short_as_five_seconds() {
        assert!(Program::try_parse_from(["test", "--certificate-ttl", "5s"]).is_ok());
        assert!(Program::try_parse_from(["test", "--certificate-ttl", "4s"]).is_err());
        assert!(Program::try_parse_from(["test", "--lease-timeout", "0s"]).is_err());
    }
}
