//! Reading metrics back as numbers.

use crate::raw;
use std::net::SocketAddr;

/// The text of a `/metrics` page.
pub struct Metrics(pub String);

/// Asks for `/metrics`.
pub async fn scrape(address: SocketAddr) -> Metrics {
    let (status, text) = raw::get(address, "/metrics").await;
    assert_eq!(status, 200, "{text}");
    Metrics(text)
}

impl Metrics {
    /// The sum of all samples of a family that have all these labels, each written `name="value"`.
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let samples = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(family)?;
            let (found, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            // Each name is whole: `tls="mtls"` is not the end of another label.
            let found = format!(",{found},");
            let all = labels.iter().all(|label| found.contains(&format!(",{label},")));
            all.then(|| value.trim().parse::<f64>().ok())?
        });
        samples.sum()
    }
}
