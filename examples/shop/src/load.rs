//! A few visitors who browse and buy as people do, so that there is traffic to look at.

use crate::{client::Client, product, request::RequestContext, serving};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How visitors behave.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Pages per second, of all visitors together.
    #[arg(long, env = "SHOP_LOAD_RATE", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// How many visitors there are; each waits for its page before it asks for the next.
    #[arg(long, env = "SHOP_LOAD_VISITORS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=200))]
    visitors: u32,
    /// Seconds between two reports.
    #[arg(long, env = "SHOP_LOAD_REPORT", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    report: u64,
}

/// What happened since the last report.
#[derive(Debug, Default)]
struct Tally {
    pages: AtomicU64,
    orders: AtomicU64,
    declined: AtomicU64,
    failed: AtomicU64,
    micros: AtomicU64,
}

/// Runs the visitors until the process is told to stop.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let client = Client::from_env()?;
    let tally = Arc::new(Tally::default());
    let pause = Duration::from_secs_f64(f64::from(options.visitors) / f64::from(options.rate));
    let mut visitors = tokio::task::JoinSet::new();
    for _ in 0..options.visitors {
        let visitor = Visitor { client: client.clone(), tally: tally.clone(), pause, cookie: None };
        visitors.spawn(visitor.come_and_go());
    }
    tracing::info!("{} visitors ask for {} pages a second", options.visitors, options.rate);
    let reports = async {
        loop {
            tokio::time::sleep(Duration::from_secs(options.report)).await;
            tally.report();
        }
    };
    tokio::select! {
        () = reports => {}
        () = serving::told_to_stop() => {}
    }
    // Visitors only look: leaving them in the middle of a page does no harm.
    visitors.shutdown().await;
    Ok(())
}

impl Tally {
    fn report(&self) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        let pages = take(&self.pages);
        let mean = take(&self.micros) as f64 / 1000.0 / pages.max(1) as f64;
        let (orders, declined, failed) = (take(&self.orders), take(&self.declined), take(&self.failed));
        tracing::info!(
            "{pages} pages, {mean:.1} ms each; {orders} orders, {declined} cards declined, {failed} failures"
        );
    }
}

struct Visitor {
    client: Client,
    tally: Arc<Tally>,
    pause: Duration,
    cookie: Option<HeaderValue>,
}

impl Visitor {
    async fn come_and_go(mut self) {
        loop {
            self.visit().await;
            self.cookie = None;
        }
    }

    /// From the front page to a few products, and sometimes to the till.
    async fn visit(&mut self) {
        self.look(Method::GET, "/", "").await;
        let mut in_cart = 0;
        for _ in 0..fastrand::u32(1..=5) {
            let all: Vec<&str> = product::ids().collect();
            let Some(id) = fastrand::choice(all) else { return };
            self.look(Method::GET, &format!("/products/{id}"), "").await;
            if in_cart < 2 && fastrand::u32(..100) < 25 {
                let form = format!("product={id}&quantity={}", fastrand::u32(1..=2));
                self.look(Method::POST, "/cart", &form).await;
                self.look(Method::GET, "/cart", "").await;
                in_cart += 1;
            }
        }
        if in_cart == 0 || fastrand::u32(..100) < 40 {
            return;
        }
        self.look(Method::GET, "/checkout", "").await;
        let declined = fastrand::u32(..100) < 8;
        let form = if declined { "payment=declined-card" } else { "payment=card" };
        let Some(answer) = self.look(Method::POST, "/checkout", form).await else { return };
        if answer.status() == StatusCode::PAYMENT_REQUIRED {
            self.tally.declined.fetch_add(1, Ordering::Relaxed);
        }
        let to = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
        if let Some(to) = to.filter(|to| to.starts_with("/orders/")) {
            self.tally.orders.fetch_add(1, Ordering::Relaxed);
            self.look(Method::GET, &to, "").await;
        }
    }

    /// Waits a little, as people do, and asks for a page.
    async fn look(&mut self, method: Method, path: &str, form: &str) -> Option<Response<Bytes>> {
        tokio::time::sleep(self.pause.mul_f64(0.5 + fastrand::f64())).await;
        let mut headers = HeaderMap::new();
        let mut context = RequestContext::default();
        context.ensure_trace();
        context.carry_into(&mut headers);
        if let Some(cookie) = &self.cookie {
            headers.insert(header::COOKIE, cookie.clone());
        }
        if method == Method::POST {
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(header::CONTENT_TYPE, kind);
        }
        let began = Instant::now();
        let answer = self
            .client
            .send("storefront", method, path, headers, Bytes::copy_from_slice(form.as_bytes()))
            .await;
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.tally.micros.fetch_add(micros, Ordering::Relaxed);
        self.tally.pages.fetch_add(1, Ordering::Relaxed);
        match answer {
            Ok(answer) => {
                if answer.status().is_server_error() {
                    self.tally.failed.fetch_add(1, Ordering::Relaxed);
                }
                if let Some(cookie) = session(answer.headers()) {
                    self.cookie = Some(cookie);
                }
                Some(answer)
            }
            Err(error) => {
                self.tally.failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!("{error}");
                None
            }
        }
    }
}

/// The cookie that an answer sets, as it is to be sent back.
fn session(headers: &HeaderMap) -> Option<HeaderValue> {
    let set = headers.get(header::SET_COOKIE)?.to_str().ok()?;
    HeaderValue::from_str(set.split(';').next()?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_sent_back_without_its_attributes() {
        let set = HeaderValue::from_static("shop_session=abc; Path=/; HttpOnly");
        let headers = [(header::SET_COOKIE, set)].into_iter().collect();
        assert_eq!(session(&headers), Some(HeaderValue::from_static("shop_session=abc")));
        assert_eq!(session(&HeaderMap::new()), None);
    }
}
