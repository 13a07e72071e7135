//! What is where, shown once everything runs.

use super::plan::{ControlPlane, Instance};
use crate::terminal::{Palette, Style, table};

/// The text, with an empty line before and after.
pub(super) fn summary(
    control_plane: &ControlPlane,
    instances: &[Instance],
    elsewhere: impl Iterator<Item = String>,
    palette: Palette,
) -> String {
    let mut places: Vec<(String, String)> = Vec::new();
    for instance in instances {
        if let (Some(path), Some(port)) = (&instance.open, instance.ports.first()) {
            places.push((instance.name.to_string(), format!("http://{}{path}", port.application)));
        }
    }
    places.push(("dashboard".into(), format!("http://{}/", control_plane.dashboard)));
    places.push(("metrics".into(), format!("http://{}/metrics", control_plane.metrics)));
    let width = places.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::from("\n");
    for (name, url) in places {
        let pad = " ".repeat(width - name.chars().count());
        text.push_str(&format!(
            "  {}{pad}  {}\n",
            palette.paint(Style::Bold, &name),
            palette.paint(Style::Place, &url)
        ));
    }
    let mut rows =
        vec![["WORKLOAD", "SERVICE", "APPLICATION", "PROXY", "ADMIN", "METRICS"].map(str::to_owned).to_vec()];
    for instance in instances {
        let dash = || "-".to_owned();
        let service = match (&instance.service, instance.ports.first()) {
            (Some(service), Some(port)) => format!("{service}:{}", port.service_port),
            // A Service selects it by its labels.
            (None, Some(port)) => format!("port {}", port.service_port),
            _ => dash(),
        };
        let application = instance.ports.first().map_or_else(dash, |p| p.application.to_string());
        let mut row = vec![instance.full_name(), service, application];
        match instance.sidecar {
            Some(s) => row.extend([s.outbound, s.admin, s.metrics].map(|a| a.to_string())),
            None => row.extend([dash(), dash(), dash()]),
        }
        rows.push(row);
    }
    text.push('\n');
    for line in table(&rows, palette).lines() {
        text.push_str(&format!("  {line}\n"));
    }
    let elsewhere: Vec<String> = elsewhere.collect();
    if !elsewhere.is_empty() {
        text.push_str(&format!("\n  not run here, for they have no command: {}\n", elsewhere.join(", ")));
    }
    text.push_str("\n  in another terminal: weft status, weft routes; Ctrl-C stops everything\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::plan::tests::instance;

    fn plane() -> ControlPlane {
        let at = |port: u16| ([127, 0, 0, 1], port).into();
        ControlPlane { listen: at(15012), metrics: at(15014), dashboard: at(15080) }
    }

    #[test]
    fn it_says_where_to_look() {
        let mut front = instance("storefront");
        front.open = Some("/shop".into());
        let text = summary(
            &plane(),
            &[front, instance("cart")],
            ["shop/db".to_owned()].into_iter(),
            Palette::plain(),
        );
        for wanted in [
            "storefront  http://127.0.0.1:21004/shop\n",
            "dashboard   http://127.0.0.1:15080/\n",
            "shop/cart        cart:8080        127.0.0.1:21004  127.0.0.1:21000  127.0.0.1:21002  127.0.0.1:21003\n",
            "no command: shop/db\n",
        ] {
            assert!(text.contains(wanted), "{wanted:?} in\n{text}");
        }
    }
}
