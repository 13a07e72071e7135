//! MeshPolicy compiled: every setting that it leaves out has its default.

use crate::document::MeshPolicy;
use crate::document::mesh_policy;
use crate::document::size::ByteSize;
use crate::snapshot::{AccessLog, Limits, Mesh, MtlsMode, OutboundMode};

pub(super) fn compile(policy: Option<&MeshPolicy>) -> Mesh {
    let default = Mesh::default();
    let Some(policy) = policy else { return default };
    let spec = &policy.spec;
    Mesh {
        trust_domain: spec.trust_domain.as_deref().map_or(default.trust_domain, Into::into),
        mtls: match spec.mtls.mode {
            None => default.mtls,
            Some(mesh_policy::MtlsMode::Strict) => MtlsMode::Strict,
            Some(mesh_policy::MtlsMode::Permissive) => MtlsMode::Permissive,
        },
        outbound: match spec.outbound {
            None => default.outbound,
            Some(mesh_policy::OutboundMode::AllowAny) => OutboundMode::AllowAny,
            Some(mesh_policy::OutboundMode::RegistryOnly) => OutboundMode::RegistryOnly,
        },
        limits: limits(&spec.limits),
        access_log: AccessLog {
            sample: spec.access_log.sample.unwrap_or(default.access_log.sample),
            min_status: spec.access_log.min_status,
        },
        trace_sampling: spec.tracing.sampling.unwrap_or(default.trace_sampling),
    }
}

fn limits(written: &mesh_policy::MeshLimits) -> Limits {
    let default = Limits::default();
    let bytes = |size: ByteSize| usize::try_from(size.0).unwrap_or(usize::MAX);
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    Limits {
        header_bytes: written.header_bytes.map_or(default.header_bytes, bytes),
        header_count: written.header_count.map_or(default.header_count, count),
        connections: written.connections.map_or(default.connections, count),
        streams: written.streams.unwrap_or(default.streams),
        header_timeout: written.header_timeout.map_or(default.header_timeout, Into::into),
        idle_timeout: written.idle_timeout.map_or(default.idle_timeout, Into::into),
        pool_idle_timeout: written.pool_idle_timeout.map_or(default.pool_idle_timeout, Into::into),
        pool_idle: written.pool_idle.map_or(default.pool_idle, count),
        pool_connections: written.pool_connections.map_or(default.pool_connections, count),
        connect_timeout: written.connect_timeout.map_or(default.connect_timeout, Into::into),
        handshake_timeout: written.handshake_timeout.map_or(default.handshake_timeout, Into::into),
        sniff_timeout: written.sniff_timeout.map_or(default.sniff_timeout, Into::into),
        request_timeout: written.request_timeout.map_or(default.request_timeout, Into::into),
        tcp_idle_timeout: written.tcp_idle_timeout.map_or(default.tcp_idle_timeout, Into::into),
        drain_timeout: written.drain_timeout.map_or(default.drain_timeout, Into::into),
    }
}
