//! How each program of the mesh is started: its arguments, its environment, its secrets.

use super::{
    environment,
    log::Source,
    plan::{ControlPlane, Instance, Interception},
    state::{PLANE_FOLDER, State, write_private},
    supervise::{Launch, Role},
};
use anyhow::Context;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};
use weft_control_plane::token::{Claims, TokenKey};

/// How long a join token is good for. It is made anew at each start of its sidecar and never leaves this machine; a
/// laptop that slept over the end of its certificates must still be able to join again.
const TOKEN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What all programs of ours have in common.
pub(super) struct House<'a> {
    /// This executable, which carries both programs.
    pub(super) executable: &'a Path,
    /// The state directory.
    pub(super) state: &'a State,
    /// Where `weft up` was started: policy paths are relative to it.
    pub(super) cwd: &'a Path,
    /// The directory of policy as the user named it.
    pub(super) policy: &'a Path,
    /// Where sidecars find secrets.
    pub(super) secrets: &'a Path,
    /// The log filter of both programs.
    pub(super) filter: &'a str,
    /// How long requests in flight get when a sidecar stops.
    pub(super) drain: Duration,
    /// The control plane's listeners.
    pub(super) control_plane: ControlPlane,
}

impl House<'_> {
    fn plane_state(&self) -> anyhow::Result<PathBuf> {
        self.state.folder(PLANE_FOLDER)
    }

    /// The control plane.
    pub(super) fn control_plane(&self) -> anyhow::Result<Launch> {
        let ControlPlane { listen, metrics, dashboard } = self.control_plane;
        let arguments = Arguments::of("control-plane")
            .with("--policy", self.policy)
            .with("--state-dir", self.plane_state()?)
            .with("--listen", listen.to_string())
            .with("--metrics", metrics.to_string())
            .with("--dashboard", dashboard.to_string())
            .with("--log", self.filter);
        Ok(Launch {
            role: Role::ControlPlane,
            source: Source::ControlPlane,
            title: "the control plane".into(),
            program: self.executable.into(),
            arguments: arguments.0,
            workdir: self.cwd.into(),
            env: plain_output(),
            withhold: environment::is_withheld,
            prepare: None,
        })
    }

    /// The sidecar of an instance, if it has one.
    pub(super) fn sidecar(&self, instance: &Instance, colour: usize) -> anyhow::Result<Option<Launch>> {
        let Some(Interception { outbound, inbound, admin, metrics }) = instance.sidecar else {
            return Ok(None);
        };
        let plane_state = self.plane_state()?;
        let folder = self
            .state
            .folder(Path::new("sidecars").join(format!("{}.{}", instance.namespace, instance.name)))?;
        let token = folder.join("join-token");
        let mut arguments = Arguments::of("sidecar")
            .with("--namespace", &*instance.namespace)
            .with("--workload", &*instance.name)
            .with("--service-account", &*instance.service_account)
            .with("--control-plane", self.control_plane.listen.to_string())
            .with("--ca-file", plane_state.join("ca.pem"))
            .with("--join-token-file", &token)
            .with("--state-dir", &folder)
            .with("--secrets-dir", self.secrets)
            .with("--outbound", outbound.to_string())
            .with("--inbound", inbound.to_string())
            .with("--advertise", inbound.to_string())
            .with("--admin", admin.to_string())
            .with("--metrics", metrics.to_string())
            .with("--drain-timeout", self.drain.as_secs().to_string())
            .with("--log", self.filter);
        for port in &instance.ports {
            arguments = arguments.with("--app", format!("{}={}", port.service_port, port.application));
        }
        let (namespace, account) = (instance.namespace.to_string(), instance.service_account.to_string());
        let prepare = move || {
            let key = TokenKey::open_or_create(&plane_state).context("join tokens cannot be made")?;
            let claims = Claims::for_next(TOKEN_LIFE, namespace.as_str(), account.as_str(), None);
            write_private(&token, key.issue(&claims)?.as_bytes())
        };
        Ok(Some(Launch {
            role: Role::Sidecar,
            source: Source::Sidecar(instance.name.clone(), colour),
            title: format!("the sidecar of {}", instance.full_name()),
            program: self.executable.into(),
            arguments: arguments.0,
            workdir: self.cwd.into(),
            env: plain_output(),
            withhold: environment::is_withheld,
            prepare: Some(Box::new(prepare)),
        }))
    }

    /// The application of an instance.
    pub(super) fn application(&self, instance: &Instance, colour: usize) -> anyhow::Result<Launch> {
        let (first, rest) = instance.program.arguments.split_first().context("the command is empty")?;
        let https_proxy_known = ["https_proxy", "HTTPS_PROXY"].iter().any(|n| std::env::var_os(n).is_some());
        Ok(Launch {
            role: Role::Application,
            source: Source::Application(instance.name.clone(), colour),
            title: instance.full_name(),
            program: first.into(),
            arguments: rest.iter().map(Into::into).collect(),
            workdir: instance.program.workdir.clone(),
            env: environment::of_application(instance, self.control_plane.dashboard, https_proxy_known),
            withhold: environment::is_withheld,
            prepare: None,
        })
    }
}

/// Our programs' lines are coloured by the log, not by themselves.
fn plain_output() -> Vec<(String, String)> {
    vec![("NO_COLOR".into(), "1".into())]
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn of(verb: &str) -> Self {
        Self(vec![verb.into()])
    }

    fn with(mut self, flag: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        // One argument: a value that starts with a dash stays a value.
        let mut argument = OsString::from(flag);
        argument.push("=");
        argument.push(value);
        self.0.push(argument);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::plan::tests::instance;

    fn with_house(check: impl FnOnce(&House<'_>, &Path)) {
        let home = tempfile::tempdir().expect("a directory");
        let state = State::open(&home.path().join("state"), home.path()).expect("opened");
        let at = |port: u16| ([127, 0, 0, 1], port).into();
        let house = House {
            executable: Path::new("/bin/weft"),
            state: &state,
            cwd: Path::new("/"),
            policy: Path::new("-odd-/policy"),
            secrets: Path::new("/policy/secrets"),
            filter: "warn",
            drain: Duration::from_secs(5),
            control_plane: ControlPlane { listen: at(1), metrics: at(2), dashboard: at(3) },
        };
        check(&house, home.path());
    }

    fn texts(launch: &Launch) -> Vec<String> {
        launch.arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_sidecar_is_told_where_its_application_is() {
        with_house(|house, _| {
            let launch = house.sidecar(&instance("cart"), 0).expect("a launch").expect("meshed");
            let arguments = texts(&launch);
            assert_eq!(arguments[0], "sidecar");
            for wanted in
                ["--workload=cart", "--app=8080=127.0.0.1:21004", "--advertise=127.0.0.1:21001", "--log=warn"]
            {
                assert!(arguments.iter().any(|a| a == wanted), "{wanted} in {arguments:?}");
            }
        });
    }

    #[test]
    fn a_join_token_is_written_before_each_start_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        with_house(|house, home| {
            let launch = house.sidecar(&instance("cart"), 0).expect("a launch").expect("meshed");
            launch.prepare.expect("prepares")().expect("written");
            let file = home.join("state/sidecars/shop.cart/join-token");
            let token = std::fs::read_to_string(&file).expect("a token");
            assert!(token.starts_with("weft1."), "{token}");
            assert!(
                !texts(&house.sidecar(&instance("cart"), 0).expect("a launch").expect("meshed"))
                    .iter()
                    .any(|a| a.contains(&token))
            );
            assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        });
    }

    #[test]
    fn outside_the_mesh_there_is_no_sidecar() {
        with_house(|house, _| {
            let mut old = instance("old");
            old.sidecar = None;
            assert!(house.sidecar(&old, 0).expect("fine").is_none());
        });
    }

    #[test]
    fn a_path_that_looks_like_a_flag_stays_a_path() {
        with_house(|house, _| {
            let launch = house.control_plane().expect("a launch");
            assert!(texts(&launch).contains(&"--policy=-odd-/policy".to_owned()));
        });
    }
}
