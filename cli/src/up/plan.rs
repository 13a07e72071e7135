//! From documents to what is run: instances, their ports, and how each program is started.

use super::ports::PortPlan;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use weft_config::document::{
    mesh_policy::MeshPolicy,
    workload::{Command, Workload},
};

/// Annotation of a Workload: `weft up` shows a link to it; the value is the path, `/` if empty.
const OPEN: &str = "weft.mesh/open";

/// What the documents ask `weft up` to run. Two of these are equal if and only if the same programs would run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Run once before anything starts.
    pub(super) build: Option<Program>,
    /// Instances, by namespace and name.
    pub(super) instances: BTreeMap<(Arc<str>, Arc<str>), WantedInstance>,
    /// Workloads that have no command: they run somewhere else.
    pub(super) elsewhere: BTreeSet<String>,
    /// What cannot be run as written.
    pub(super) problems: Vec<String>,
}

/// A program and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// The program and its arguments.
    pub(super) arguments: Vec<String>,
    /// The directory it runs in.
    pub(super) workdir: PathBuf,
}

/// One instance, before it has ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WantedInstance {
    program: Program,
    service_account: Arc<str>,
    service: Option<Arc<str>>,
    labels: Vec<(Arc<str>, Arc<str>)>,
    env: Vec<(String, String)>,
    /// Service port, and the port that the application insists on.
    ports: Vec<(u16, Option<u16>)>,
    meshed: bool,
    open: Option<String>,
}

/// One instance with everything it needs to be started.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    /// Its namespace.
    pub(super) namespace: Arc<str>,
    /// Its name: the document's, with `-0`, `-1` ... if there are several.
    pub(super) name: Arc<str>,
    /// The service account its identity is made of.
    pub(super) service_account: Arc<str>,
    /// The service it serves.
    pub(super) service: Option<Arc<str>>,
    /// The document's labels.
    pub(super) labels: Vec<(Arc<str>, Arc<str>)>,
    /// The application.
    pub(super) program: Program,
    /// The document's own variables.
    pub(super) env: Vec<(String, String)>,
    /// Where the application is to listen.
    pub(super) ports: Vec<AppPort>,
    /// Where its sidecar listens; none if the document says `mesh: false`.
    pub(super) sidecar: Option<Interception>,
    /// The path that a person may want to open in a browser.
    pub(super) open: Option<String>,
}

/// One port of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AppPort {
    /// The number that callers use.
    pub(super) service_port: u16,
    /// Where the application listens for it.
    pub(super) application: SocketAddr,
}

/// The listeners of one sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interception {
    /// Takes the application's calls.
    pub(super) outbound: SocketAddr,
    /// Takes peers' calls.
    pub(super) inbound: SocketAddr,
    /// Admin interface.
    pub(super) admin: SocketAddr,
    /// Health and metrics.
    pub(super) metrics: SocketAddr,
}

/// The listeners of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ControlPlane {
    /// Takes sidecars.
    pub(super) listen: SocketAddr,
    /// Metrics.
    pub(super) metrics: SocketAddr,
    /// Status page and API.
    pub(super) dashboard: SocketAddr,
}

impl Wanted {
    /// Adds what a Workload asks for. `folder` is where its file lies.
    pub(super) fn add_workload(&mut self, workload: &Workload, folder: &Path) {
        let namespace: Arc<str> = workload.metadata.namespace().into();
        let document = workload.metadata.name.as_str();
        let spec = &workload.spec;
        let Some(command) = &spec.command else {
            self.elsewhere.insert(format!("{namespace}/{document}"));
            return;
        };
        let workdir = spec.workdir.as_ref().map_or_else(|| folder.to_owned(), |dir| folder.join(dir));
        let ports: Vec<(u16, Option<u16>)> = spec
            .ports
            .iter()
            // Without a sidecar, callers are sent straight to the application, so it has to be where they look.
            .map(|p| (p.port, if spec.mesh { p.app_port } else { p.app_port.or(Some(p.port)) }))
            .collect();
        if spec.replicas > 1
            && let Some((_, Some(port))) = ports.iter().find(|(_, fixed)| fixed.is_some())
        {
            let cure = if spec.mesh {
                "leave `appPort` out and let the application listen on $PORT"
            } else {
                "write one Workload per instance, each with its own `appPort`"
            };
            self.problems.push(format!(
                "Workload {namespace}/{document}: {} replicas cannot all listen on port {port} of this machine; {cure}",
                spec.replicas
            ));
            return;
        }
        let instance = WantedInstance {
            program: Program { arguments: arguments(command), workdir },
            service_account: spec.service_account.as_str().into(),
            service: spec.service.as_deref().map(Into::into),
            labels: workload
                .metadata
                .labels
                .iter()
                .map(|(k, v)| (k.as_str().into(), v.as_str().into()))
                .collect(),
            env: spec.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            ports,
            meshed: spec.mesh,
            open: workload.metadata.annotations.get(OPEN).map(|path| absolute_path(path)),
        };
        for number in 0..spec.replicas {
            let name: Arc<str> =
                if spec.replicas == 1 { document.into() } else { format!("{document}-{number}").into() };
            if self.instances.insert((namespace.clone(), name.clone()), instance.clone()).is_some() {
                self.problems.push(format!(
                    "two workloads in namespace {namespace} would run as `{name}`; give one Workload another name"
                ));
            }
        }
    }

    /// Takes the build step of the MeshPolicy.
    pub(super) fn add_mesh_policy(&mut self, policy: &MeshPolicy, folder: &Path) {
        if let Some(command) = &policy.spec.up.build {
            self.build = Some(Program { arguments: arguments(command), workdir: folder.to_owned() });
        }
    }

    /// Gives every instance its ports.
    pub(super) fn place(&self, ports: &mut PortPlan) -> anyhow::Result<Vec<Instance>> {
        // The ports that documents insist on come first, before one of them is given to somebody else.
        let mut insisted: BTreeMap<(&Arc<str>, &Arc<str>, u16), SocketAddr> = BTreeMap::new();
        for ((namespace, name), wanted) in &self.instances {
            for (service_port, fixed) in &wanted.ports {
                if let Some(port) = fixed {
                    let address =
                        ports.exactly(*port).map_err(|e| e.context(format!("{namespace}/{name}")))?;
                    insisted.insert((namespace, name, *service_port), address);
                }
            }
        }
        let mut instances = Vec::with_capacity(self.instances.len());
        for ((namespace, name), wanted) in &self.instances {
            let mut applications = Vec::with_capacity(wanted.ports.len());
            for (service_port, _) in &wanted.ports {
                let application = match insisted.get(&(namespace, name, *service_port)) {
                    Some(address) => *address,
                    None => ports.any()?,
                };
                applications.push(AppPort { service_port: *service_port, application });
            }
            let sidecar = if wanted.meshed {
                Some(Interception {
                    outbound: ports.any()?,
                    inbound: ports.any()?,
                    admin: ports.any()?,
                    metrics: ports.any()?,
                })
            } else {
                None
            };
            instances.push(Instance {
                namespace: namespace.clone(),
                name: name.clone(),
                service_account: wanted.service_account.clone(),
                service: wanted.service.clone(),
                labels: wanted.labels.clone(),
                program: wanted.program.clone(),
                env: wanted.env.clone(),
                ports: applications,
                sidecar,
                open: wanted.open.clone(),
            });
        }
        Ok(instances)
    }

    /// The instances that a later reading of the documents would run differently, for the message that says so.
    pub(super) fn differences(&self, later: &Self) -> Vec<String> {
        let names: BTreeSet<_> = self.instances.keys().chain(later.instances.keys()).collect();
        names
            .into_iter()
            .filter_map(|key| {
                let what = match (self.instances.get(key), later.instances.get(key)) {
                    (None, Some(_)) => "new",
                    (Some(_), None) => "gone",
                    (before, after) if before != after => "changed",
                    _ => return None,
                };
                Some(format!("{}/{} ({what})", key.0, key.1))
            })
            .collect()
    }
}

impl Instance {
    /// `namespace/name`.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn arguments(command: &Command) -> Vec<String> {
    match command {
        Command::Shell(text) => vec!["sh".to_owned(), "-c".to_owned(), text.clone()],
        Command::Arguments(list) => list.clone(),
    }
}

fn absolute_path(path: &str) -> String {
    let path = path.trim();
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use weft_config::document::{
        Kind,
        metadata::{Metadata, Resource},
        workload::{WorkloadPort, WorkloadSpec},
    };

    /// An instance for tests of this module's neighbours.
    pub(in crate::up) fn instance(name: &str) -> Instance {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Instance {
            namespace: "shop".into(),
            name: name.into(),
            service_account: "default".into(),
            service: Some(name.into()),
            labels: vec![("version".into(), "v1".into())],
            program: Program { arguments: vec!["true".into()], workdir: "/".into() },
            env: Vec::new(),
            ports: vec![AppPort { service_port: 8080, application: at(21004) }],
            sidecar: Some(Interception {
                outbound: at(21000),
                inbound: at(21001),
                admin: at(21002),
                metrics: at(21003),
            }),
            open: None,
        }
    }

    fn workload(name: &str, change: impl FnOnce(&mut WorkloadSpec)) -> Workload {
        let mut spec = WorkloadSpec {
            service: Some(name.to_owned()),
            ports: vec![WorkloadPort { port: 8080, ..WorkloadPort::default() }],
            command: Some(Command::Arguments(vec!["./serve".into(), "--fast".into()])),
            ..WorkloadSpec::default()
        };
        change(&mut spec);
        Resource::new(Kind::Workload, Metadata::named("shop", name), spec)
    }

    fn wanted(workloads: &[Workload]) -> Wanted {
        let mut wanted = Wanted::default();
        for workload in workloads {
            wanted.add_workload(workload, Path::new("/policy"));
        }
        wanted
    }

    fn names(wanted: &Wanted) -> Vec<&str> {
        wanted.instances.keys().map(|(_, name)| &**name).collect()
    }

    #[test]
    fn replicas_become_numbered_instances() {
        let wanted = wanted(&[
            workload("product", |s| s.replicas = 3),
            workload("cart", |_| {}),
            workload("off", |s| s.replicas = 0),
        ]);
        assert_eq!(names(&wanted), ["cart", "product-0", "product-1", "product-2"]);
    }

    #[test]
    fn every_listener_gets_its_own_port() {
        let wanted = wanted(&[workload("a", |s| s.replicas = 2), workload("b", |_| {})]);
        let instances = wanted.place(&mut PortPlan::new("every_listener")).expect("placed");
        let mut seen = BTreeSet::new();
        for instance in &instances {
            let sidecar = instance.sidecar.expect("meshed");
            for address in [sidecar.outbound, sidecar.inbound, sidecar.admin, sidecar.metrics] {
                assert!(seen.insert(address), "{address} twice");
            }
            assert!(seen.insert(instance.ports[0].application));
        }
        assert_eq!(seen.len(), 15);
    }

    #[test]
    fn a_workload_without_command_runs_elsewhere() {
        let wanted = wanted(&[workload("db", |s| s.command = None)]);
        assert!(wanted.instances.is_empty());
        assert!(wanted.elsewhere.contains("shop/db"));
    }

    #[test]
    fn a_text_is_run_by_the_shell_in_the_documents_folder() {
        let wanted = wanted(&[workload("a", |s| {
            s.command = Some(Command::Shell("exec serve $PORT".into()));
            s.workdir = Some("src".into());
        })]);
        let (_, a) = wanted.instances.iter().next().expect("one");
        assert_eq!(a.program.arguments, ["sh", "-c", "exec serve $PORT"]);
        assert_eq!(a.program.workdir, Path::new("/policy/src"));
    }

    #[test]
    fn replicas_cannot_share_a_port_of_their_own_choice() {
        let wanted = wanted(&[workload("a", |s| {
            s.replicas = 2;
            s.ports[0].app_port = Some(3000);
        })]);
        assert!(wanted.problems[0].contains("$PORT"), "{:?}", wanted.problems);
        assert!(wanted.instances.is_empty());
    }

    #[test]
    fn a_port_that_the_document_names_is_kept() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = free.local_addr().expect("address").port();
        drop(free);
        let wanted = wanted(&[workload("a", |s| s.ports[0].app_port = Some(port))]);
        let instances = wanted.place(&mut PortPlan::new("a_port_that")).expect("placed");
        assert_eq!(instances[0].ports[0].application.port(), port);
    }

    #[test]
    fn outside_the_mesh_the_application_is_where_callers_look() {
        let wanted = wanted(&[workload("old", |s| s.mesh = false)]);
        let (_, old) = wanted.instances.iter().next().expect("one");
        assert_eq!(old.ports, [(8080, Some(8080))]);
        assert!(!old.meshed);
    }

    #[test]
    fn two_workloads_of_one_name_are_a_problem() {
        let wanted = wanted(&[workload("a-1", |_| {}), workload("a", |s| s.replicas = 2)]);
        assert!(wanted.problems[0].contains("`a-1`"), "{:?}", wanted.problems);
    }

    #[test]
    fn differences_name_what_a_restart_would_change() {
        let before = wanted(&[workload("a", |_| {}), workload("b", |_| {}), workload("c", |_| {})]);
        let after = wanted(&[
            workload("a", |_| {}),
            workload("b", |s| s.replicas = 2),
            workload("c", |s| s.env = [("K".to_owned(), "V".to_owned())].into()),
        ]);
        assert_eq!(
            before.differences(&after),
            ["shop/b (gone)", "shop/b-0 (new)", "shop/b-1 (new)", "shop/c (changed)"]
        );
        assert!(before.differences(&before.clone()).is_empty());
    }
}
