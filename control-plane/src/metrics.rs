//! The control plane's Prometheus metrics.

use anyhow::{Context, Result};
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// Everything that is counted. Labels take their values from fixed lists, never from the wire.
pub struct Metrics {
    registry: Registry,
    /// Documents by state.
    pub documents: IntGaugeVec,
    /// Documents newly rejected, by kind.
    pub rejected: IntCounterVec,
    /// Policy files or directories that cannot be read.
    pub unreadable: IntGauge,
    /// Time from a change in the files to everything published.
    pub apply_seconds: Histogram,
    /// Connected sidecars.
    pub sidecars: IntGauge,
    /// Leases held.
    pub leases: IntGauge,
    /// Leases that ran out.
    pub leases_expired: IntCounter,
    /// Updates sent.
    pub pushes: IntCounter,
    /// Resources sent in updates.
    pub pushed_resources: IntCounter,
    /// Time from an update to its answer.
    pub answer_seconds: Histogram,
    /// Resources that a sidecar refused.
    pub nacks: IntCounter,
    /// Streams refused, by reason.
    pub streams_refused: IntCounterVec,
    /// TLS handshakes that failed, by reason.
    pub handshakes_failed: IntCounterVec,
    /// Certificates issued.
    pub certificates_issued: IntCounter,
    /// Certificate requests refused, by reason.
    pub certificates_refused: IntCounterVec,
    /// Reported calls to what policy says is going away.
    pub deprecated_calls: IntCounter,
    /// Processes that are remembered to have made such calls, each counted once for each thing it called.
    pub deprecated_callers: IntGauge,
    /// Reports of such calls that were not kept, or no longer.
    pub deprecated_dropped: IntCounter,
    /// Purges of the cache that were asked for, by what became of them.
    pub cache_purges: IntCounterVec,
    /// Stored answers that they were for.
    pub cache_purged_answers: IntCounter,
    /// How long they took.
    pub cache_purge_seconds: Histogram,
    /// Messages to sidecars that purge something.
    pub cache_purges_sent: IntCounter,
    /// Purges that sidecars had missed when they came back.
    pub cache_purges_missed: IntCounter,
    /// Roots that sidecars trust.
    pub trusted_roots: IntGauge,
    /// When the CA ends.
    pub authority_expires: Gauge,
    _build: GaugeVec,
}

impl Metrics {
    /// A registry of its own, so that several control planes can live in one process.
    pub fn new() -> Result<Self> {
        Self::build().context("the metrics cannot be registered")
    }

    fn build() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let histogram = |name: &str, help: &str| -> prometheus::Result<Histogram> {
            let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let documents = IntGaugeVec::new(
            Opts::new(
                "weft_policy_documents",
                "Policy documents by state: accepted, pending (accepted but not yet enforced) or rejected.",
            ),
            &["state"],
        )?;
        registry.register(Box::new(documents.clone()))?;
        let authority_expires = Gauge::new(
            "weft_control_plane_ca_expiration_timestamp_seconds",
            "When the certificate authority that signs now expires, in Unix time.",
        )?;
        registry.register(Box::new(authority_expires.clone()))?;
        let build =
            GaugeVec::new(Opts::new("weft_build_info", "The running program; always 1."), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        registry.register(Box::new(build.clone()))?;
        let metrics = Self {
            documents,
            rejected: counters(
                "weft_policy_rejected_total",
                "Document versions that were rejected, by kind; unknown if not even the kind could be read.",
                "kind",
            )?,
            unreadable: gauge(
                "weft_policy_unreadable_files",
                "Policy files and directories that cannot be read at the moment.",
            )?,
            apply_seconds: histogram(
                "weft_policy_apply_seconds",
                "Time from reading changed policy files to having everything published.",
            )?,
            sidecars: gauge("weft_control_plane_sidecars", "Sidecars that are connected.")?,
            leases: gauge("weft_control_plane_leases", "Workloads that hold a lease, ready or not.")?,
            leases_expired: counter(
                "weft_control_plane_leases_expired_total",
                "Leases of serving workloads that ran out because nothing more was heard.",
            )?,
            pushes: counter("weft_control_plane_pushes_total", "Updates sent to sidecars.")?,
            pushed_resources: counter(
                "weft_control_plane_pushed_resources_total",
                "Resources sent or withdrawn in updates to sidecars.",
            )?,
            answer_seconds: histogram(
                "weft_control_plane_answer_seconds",
                "Time from sending an update to the sidecar's answer that it is in force.",
            )?,
            nacks: counter(
                "weft_control_plane_nacks_total",
                "Resources that a sidecar refused to take, keeping what it had.",
            )?,
            streams_refused: counters(
                "weft_control_plane_streams_refused_total",
                "Streams refused because of who was calling or how.",
                "reason",
            )?,
            handshakes_failed: counters(
                "weft_control_plane_handshakes_failed_total",
                "TLS connections to the push port that came to nothing.",
                "reason",
            )?,
            certificates_issued: counter(
                "weft_control_plane_certificates_issued_total",
                "Certificates issued to workloads.",
            )?,
            certificates_refused: counters(
                "weft_control_plane_certificates_refused_total",
                "Certificate requests that were refused.",
                "reason",
            )?,
            deprecated_calls: counter(
                "weft_control_plane_deprecated_calls_total",
                "Calls to what policy says is going away, as sidecars report them.",
            )?,
            deprecated_callers: gauge(
                "weft_control_plane_deprecated_callers",
                "Processes that called something that is going away within the last 7 days, once for each thing.",
            )?,
            deprecated_dropped: counter(
                "weft_control_plane_deprecated_dropped_total",
                "Counts of deprecated calls that were not kept, because there are too many or they name nothing.",
            )?,
            cache_purges: counters(
                "weft_control_plane_cache_purges_total",
                "Purges of the response cache by result: complete, incomplete (not acknowledged by all) or refused.",
                "result",
            )?,
            cache_purged_answers: counter(
                "weft_control_plane_cache_purged_answers_total",
                "Stored answers that purges were for, as sidecars counted them.",
            )?,
            cache_purge_seconds: histogram(
                "weft_control_plane_cache_purge_seconds",
                "Time from asking for a purge to its answer.",
            )?,
            cache_purges_sent: counter(
                "weft_control_plane_cache_purges_sent_total",
                "Messages to sidecars that purge something; each purge goes round several times.",
            )?,
            cache_purges_missed: counter(
                "weft_control_plane_cache_purges_missed_total",
                "Purges that sidecars had missed when they came back, and were told then.",
            )?,
            trusted_roots: gauge("weft_control_plane_trusted_roots", "CA certificates in the trust bundle.")?,
            authority_expires,
            _build: build,
            registry,
        };
        for state in ["accepted", "pending", "rejected"] {
            metrics.documents.with_label_values(&[state]).set(0);
        }
        Ok(metrics)
    }

    /// Everything in the Prometheus text format.
    pub fn render(&self) -> Result<Vec<u8>> {
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text).context("the metrics do not encode")?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        collections::{BTreeMap, BTreeSet},
        io::Write,
        process,
    };

    /// All families, each with a sample.
    fn full() -> String {
        let metrics = Metrics::new().expect("registered");
        for counters in [
            &metrics.rejected,
            &metrics.streams_refused,
            &metrics.handshakes_failed,
            &metrics.certificates_refused,
            &metrics.cache_purges,
        ] {
            counters.with_label_values(&["some"]).inc();
        }
        String::from_utf8(metrics.render().expect("rendered")).expect("text")
    }

    /// Name, type and names of labels of each family that the table of the control plane has.
    fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
        let reference = include_str!("../../docs/telemetry.md");
        let (_, after) = reference.split_once("\n### The control plane's\n").expect("a section");
        let section = after.split("\n## ").next().expect("its text");
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| {
            let row = row.replace("| |", "|  |");
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            let [name, kind, labels, says] = cells[..] else { panic!("not four cells: {row}") };
            assert!(!says.is_empty(), "{row}");
            let labels = labels.split_whitespace().map(|label| label.trim_matches('`').to_owned());
            (name.trim_matches('`').to_owned(), (kind.to_owned(), labels.collect()))
        })
        .collect()
    }

    #[test]
    fn every_family_is_documented_and_every_row_a_family() {
        let mut exported = BTreeMap::new();
        for family in prometheus_families(&full()) {
            let (name, kind, labels) = family;
            exported.insert(name, (kind, labels));
        }
        assert_eq!(documented(), exported);
    }

    /// What a scrape has: name, type and names of labels.
    fn prometheus_families(text: &str) -> Vec<(String, String, BTreeSet<String>)> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types
            .map(|(name, kind)| {
                let samples = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
                let labels = samples.filter_map(|sample| Some(sample.rsplit_once('}')?.0));
                let names =
                    labels.flat_map(|labels| labels.split("\",")).filter_map(|label| label.split_once('='));
                let names = names.map(|(name, _)| name.to_owned()).collect();
                (name.to_owned(), kind.to_owned(), names)
            })
            .collect()
    }

    #[test]
    fn promtool_finds_nothing_to_say() {
        let text = full();
        let spawned = process::Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(process::Stdio::piped())
            .stdout(process::Stdio::piped())
            .stderr(process::Stdio::piped())
            .spawn();
        // CI has it; a laptop need not.
        let Ok(mut promtool) = spawned else { return };
        promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
        let output = promtool.wait_with_output().expect("ran");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}
