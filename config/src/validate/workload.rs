//! Rules between the fields of one Service, EndpointSlice or Workload.

use super::{Findings, label, shown};
use crate::document::EndpointSlice;
use crate::document::endpoint_slice::{AddressType, SERVICE_NAME_LABEL};
use crate::document::service::{ServiceSpec, TransportProtocol};
use crate::document::workload::{Command, WorkloadSpec};
use crate::parse::format;
use std::net::IpAddr;

pub(super) fn service(findings: &mut Findings<'_>, spec: &ServiceSpec) {
    findings.unique("spec.ports", ".name", "port name", spec.ports.iter().map(|p| p.name.as_deref()), false);
    let external = spec.service_type.as_deref() == Some("ExternalName");
    if external && spec.external_name.is_none() {
        findings.error(
            "spec.externalName",
            "the field `externalName` is missing for the type ExternalName",
            "add the host that the Service stands for",
        );
    }
    if spec.ports.is_empty() && !external {
        findings.error("spec.ports", "the Service has no ports", "add `ports: [{port: 80}]`");
    }
    let mut numbers = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        if port.name.is_none() && spec.ports.len() > 1 {
            findings.error(
                &format!("{at}.name"),
                "the field `name` is missing: a Service with several ports names each",
                "add it, for example `name: http`",
            );
        }
        if numbers.contains(&(port.port, port.protocol)) {
            findings.error(
                &format!("{at}.port"),
                format!("the port `{}` is there twice", port.port),
                "keep one of the two",
            );
        }
        numbers.push((port.port, port.protocol));
        if port.protocol != TransportProtocol::Tcp {
            findings.warning(
                &format!("{at}.protocol"),
                format!("the port {} is not TCP and so not meshed", port.port),
                "nothing, if that is meant",
            );
        }
        app_protocol(findings, &format!("{at}.appProtocol"), port.app_protocol.as_deref());
    }
}

/// An unknown protocol of somebody else's Service is read as opaque, not refused.
fn app_protocol(findings: &mut Findings<'_>, at: &str, protocol: Option<&str>) {
    if let Some(protocol) = protocol
        && let Err(unfit) = format::check("app-protocol", protocol)
    {
        findings.warning(
            at,
            format!(
                "`{}` is no protocol that Weft knows, so it is found out from the first bytes",
                shown(protocol)
            ),
            if unfit.cure.is_empty() { format!("known are {}", unfit.expected) } else { unfit.cure },
        );
    }
}

pub(super) fn endpoint_slice(findings: &mut Findings<'_>, slice: &EndpointSlice) {
    if slice.service_name().is_none() {
        findings.warning(
            "metadata.labels",
            format!("the label `{SERVICE_NAME_LABEL}` is missing, so the slice belongs to no Service"),
            format!("add it, for example `{SERVICE_NAME_LABEL}: product`"),
        );
    }
    if slice.address_type == AddressType::Fqdn {
        findings.warning("addressType", "endpoints with host names are not called", "use IP addresses");
    }
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        for (number, address) in endpoint.addresses.iter().enumerate() {
            let found = address.parse::<IpAddr>();
            let fits = match slice.address_type {
                AddressType::IPv4 => found.as_ref().is_ok_and(IpAddr::is_ipv4),
                AddressType::IPv6 => found.as_ref().is_ok_and(IpAddr::is_ipv6),
                AddressType::Fqdn => true,
            };
            if !fits {
                findings.error(
                    &format!("endpoints[{index}].addresses[{number}]"),
                    format!(
                        "found `{}`, expected an address of the type {:?}",
                        shown(address),
                        slice.address_type
                    ),
                    "correct the address, or `addressType`",
                );
            }
        }
    }
    findings.unique("ports", ".name", "port name", slice.ports.iter().map(|p| p.name.as_deref()), false);
    for (index, port) in slice.ports.iter().enumerate() {
        app_protocol(findings, &format!("ports[{index}].appProtocol"), port.app_protocol.as_deref());
    }
}

pub(super) fn workload(findings: &mut Findings<'_>, spec: &WorkloadSpec) {
    findings.unique("spec.ports", ".name", "port name", spec.ports.iter().map(|p| p.name.as_deref()), false);
    for (index, port) in spec.ports.iter().enumerate() {
        if spec.ports[..index].iter().any(|other| other.port == port.port) {
            findings.error(
                &format!("spec.ports[{index}].port"),
                format!("the port `{}` is there twice", port.port),
                "keep one of the two",
            );
        }
    }
    if spec.service.is_some() && spec.ports.is_empty() {
        findings.error(
            "spec.ports",
            "the workload serves a service and has no ports",
            "add them, for example `ports: [{port: 8080, appProtocol: http}]`",
        );
    }
    for (index, upstream) in spec.upstreams.iter().enumerate() {
        let at = format!("spec.upstreams[{index}].listen");
        if spec.upstreams[..index].iter().any(|other| other.listen == upstream.listen) {
            let message = format!("two upstreams listen on `{}`", upstream.listen);
            findings.error(&at, message, "give each an address of its own");
        }
        if !upstream.listen.ip().is_loopback() {
            findings.warning(
                &at,
                format!(
                    "`{}` can be reached from other machines, which then call with this workload's identity",
                    upstream.listen
                ),
                format!("write `127.0.0.1:{}`", upstream.listen.port()),
            );
        }
        if upstream.listen.port() < 1024 {
            let message = format!("the port {} is only for root on most systems", upstream.listen.port());
            findings.warning(&at, message, "use one from 1024 up");
        }
    }
    if !spec.mesh && spec.inbound.is_some() {
        findings.error(
            "spec.inbound",
            "found the address of a sidecar for a workload that has none (`mesh: false`)",
            "take one of the two away",
        );
    }
    if spec.command.is_some() && spec.inbound.is_some() {
        findings.warning(
            "spec.inbound",
            "`weft up` picks the sidecar's address of a workload that it runs itself",
            "take `inbound` away",
        );
    }
    match &spec.command {
        Some(Command::Arguments(arguments))
            if arguments.first().is_some_and(|program| program.is_empty()) =>
        {
            findings.error("spec.command[0]", "the program's name is empty", "write the program to run");
        }
        Some(_) => {}
        None => {
            for (field, there) in [("workdir", spec.workdir.is_some()), ("env", !spec.env.is_empty())] {
                if there {
                    findings.warning(
                        &format!("spec.{field}"),
                        format!("`{field}` has no effect without `command`"),
                        "add `command`, or take it away",
                    );
                }
            }
        }
    }
    for name in spec.env.keys() {
        if name.is_empty() || name.contains(['=', '\0']) {
            findings.error(
                &format!("spec.env.{name}"),
                format!("found `{}`, expected the name of an environment variable", shown(name)),
                "leave `=` out of the name",
            );
        }
    }
    if let Some(zone) = &spec.zone {
        label(findings, "spec.zone", "zone", zone);
    }
}
