//! Names: paths, hosts, identities. Each has one form, and who reads it reads what was meant.

use crate::message::split_authority;
use weft_config::{
    identity::{MeshProtocol, SpiffeId, mesh_server_name, parse_mesh_server_name},
    matching::normalize_path,
    snapshot::Snapshot,
};

pub(super) const PATHS: &[&[u8]] =
    &[b"/a/./b/../c//d", b"/%2e%2e/a%2Fb/%5c;x=1", b"/caf\xc3\xa9 %41%7e|{}", b"/..%2fa", b"//a/..;/b", b"*"];

/// What an escape stands for, or the byte itself; with whether it was escaped.
fn letters(segment: &[u8]) -> Option<Vec<(u8, bool)>> {
    let mut read = Vec::new();
    let mut rest = segment;
    while let Some((first, behind)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(behind.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            read.push((u8::from_str_radix(digits, 16).ok()?, true));
            rest = &behind[2..];
        } else {
            read.push((*first, false));
            rest = behind;
        }
    }
    Some(read)
}

/// The segments of a path one by one, as RFC 3986 section 6.2.2 resolves them; slow and simple.
fn segments(path: &str) -> Option<Vec<Vec<u8>>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for segment in path.strip_prefix('/')?.split('/') {
        let letters = letters(segment.as_bytes())?;
        let text: Vec<u8> = letters.iter().map(|(byte, _)| *byte).collect();
        match text.as_slice() {
            b"" | b"." => {}
            b".." => drop(all.pop()),
            _ => {
                let apart = |(byte, escaped): (u8, bool)| match byte {
                    // An escape of these may mean something else than they do.
                    b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b','
                    | b';' | b'=' => [byte, u8::from(escaped)],
                    byte => [byte, 2],
                };
                all.push(letters.into_iter().flat_map(apart).collect());
            }
        }
    }
    Some(all)
}

/// A path has one form, which means what the path meant, and nobody reads a step upwards in it.
pub(super) fn path(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(normal) = normalize_path(text) else { return };
    assert_eq!(normalize_path(&normal).as_deref(), Ok(&*normal), "the form of a form");
    if text == "*" || text.is_empty() {
        return;
    }
    assert!(normal.starts_with('/') && !normal.contains("//"));
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\\\"<>".contains(&byte)), "{normal}");
    assert!(normal.parse::<http::uri::PathAndQuery>().is_ok_and(|whole| whole.path() == normal));
    assert_eq!(segments(&normal), segments(text), "{normal} is not {text}");
    let decoded: Option<Vec<u8>> =
        letters(normal.as_bytes()).map(|all| all.iter().map(|(byte, _)| *byte).collect());
    let Some(decoded) = decoded else { panic!("{normal} has an escape that is none") };
    for step in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
        assert!(step != b"." && step != b"..", "{normal} leads elsewhere once its escapes are read");
    }
    assert!(!decoded.contains(&0), "{normal} ends early for some");
}

pub(super) const HOSTS: &[&[u8]] = &[
    b"product.shop.svc.cluster.local.",
    b"Product:8080",
    b"8080.product.shop.weft",
    b"spiffe://weft.local/ns/shop/sa/cart",
    b"[fe80::1%25en0]:443",
    b"weft/1over2",
    b"svc.svc",
];

/// A host names one service however it is written, and names that sidecars tell each other are read as they were meant.
pub(super) fn host(bytes: &[u8]) {
    if let Some(protocol) = MeshProtocol::from_alpn(bytes) {
        assert_eq!(protocol.alpn(), bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Some((service, port)) = parse_mesh_server_name(text) {
        assert_eq!(parse_mesh_server_name(&mesh_server_name(&service, port)), Some((service, port)));
    }
    let Some((host, _)) = split_authority(text) else { return };
    let Some(service) = Snapshot::host_candidates(host, "here") else { return };
    let label = |text: &str| {
        (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    assert!(label(&service.name) && label(&service.namespace), "{service}");
    let full = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
    for same in [full, host.to_ascii_uppercase()] {
        assert_eq!(Snapshot::host_candidates(&same, "here").as_ref(), Some(&service), "{same}");
    }
    assert_eq!(parse_mesh_server_name(&mesh_server_name(&service, 80)), Some((service, 80)));
}
