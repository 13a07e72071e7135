//! The shop as a whole, with its own policy: what its cache spares the catalogue, and what it never gets wrong.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
};
use weft_tests::{Beside, Mesh, Process, free_port, raw};

/// What people look at: the front page, and each product a page of its own.
const PRODUCTS: [&str; 12] = [
    "fjord-blanket",
    "ember-scarf",
    "dune-rug",
    "moss-cushion",
    "harbour-tote",
    "rowan-throw",
    "slate-scarf",
    "terrace-rug",
    "lilac-cushion",
    "orchard-tote",
    "glacier-throw",
    "saffron-cushion",
];
/// How often all of it is looked at.
const ROUNDS: usize = 20;

/// A service of the shop behind a sidecar. Dropped, both are gone.
struct Service {
    app: SocketAddr,
    sidecar: Process,
    process: Child,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Service {
    async fn start(mesh: &Mesh, prices: &Path, workload: &str, words: &[&str]) -> Self {
        let app = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let account = words[0];
        let sidecar = mesh.sidecar_unready(Beside::new(workload).account(account).app(8080, app)).await;
        let process = Command::new(env!("CARGO_BIN_EXE_shop"))
            .args(words)
            .env("PORT", app.port().to_string())
            .env("WEFT_WORKLOAD", workload)
            .env("http_proxy", format!("http://{}", sidecar.outbound()))
            .env("SHOP_PRICES", prices)
            .env("SHOP_SLOW_SHARE", "0")
            .env("SHOP_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .expect("the shop starts");
        let service = Self { app, sidecar, process };
        // It says so once its application listens.
        service.sidecar.ready().await;
        service
    }
}

/// The services that a page of products needs.
struct Shop {
    mesh: Mesh,
    storefront: Service,
    products: Vec<Service>,
    _others: Vec<Service>,
    prices: tempfile::TempDir,
}

impl Shop {
    /// Opens with all policy that stands beside this test but for the cache's.
    async fn open() -> Self {
        let prices = tempfile::tempdir().expect("a folder");
        let mesh = Mesh::start(&policy(|name| name != "cache.yaml")).await;
        let start = |workload, words| Service::start(&mesh, prices.path(), workload, words);
        let products = vec![
            start("product-v1-0", &["product", "--edition", "v1"][..]).await,
            start("product-v2-0", &["product", "--edition", "v2"]).await,
        ];
        let others = vec![start("recommendation", &["recommendation"]).await, start("cart", &["cart"]).await];
        let storefront = start("storefront", &["storefront"]).await;
        mesh.endpoints("product", 2).await;
        mesh.endpoints("recommendation", 1).await;
        mesh.endpoints("cart", 1).await;
        let shop = Self { mesh, storefront, products, _others: others, prices };
        // Once each way, so that what is asked for the first time is known to the sidecars.
        for product in PRODUCTS {
            shop.look(&format!("/products/{product}")).await;
        }
        shop
    }

    /// Lets the cache's policy into force.
    async fn keep_answers(&self) {
        self.mesh.write("cache.yaml", &policy(|name| name == "cache.yaml"));
        self.mesh
            .until("the cache is in force everywhere", |status| {
                let kept = status.documents.iter().filter(|document| document.kind == "CachePolicy");
                kept.count() == 2 && status.sidecars.iter().all(|sidecar| !sidecar.behind)
            })
            .await;
    }

    async fn look(&self, path: &str) -> String {
        let (status, page) = raw::get(self.storefront.app, path).await;
        assert_eq!(status, 200, "{path}: {page}");
        page
    }

    /// Sends a form, and gives the page that it leads to.
    async fn send(&self, path: &str, form: &str) -> (u16, String) {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ncookie: shop_session=0123456789abcdef\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        );
        let answer = raw::exchange(self.storefront.app, request).await;
        (answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), answer)
    }

    /// Requests that came to the catalogue so far, as its sidecars count them.
    async fn at_the_catalogue(&self) -> f64 {
        let mut sum = 0.0;
        for product in &self.products {
            let metrics = product.sidecar.metrics().await;
            sum += metrics.sum("weft_requests_total", &["direction=\"inbound\""]);
        }
        sum
    }

    /// How much more comes to the catalogue while people look at everything a few times.
    async fn while_people_look(&self) -> f64 {
        let before = self.at_the_catalogue().await;
        for _ in 0..ROUNDS {
            self.look("/").await;
            for product in PRODUCTS {
                let page = self.look(&format!("/products/{product}")).await;
                assert!(page.contains("You may also like"), "recommendations are part of it: {page}");
            }
        }
        self.at_the_catalogue().await - before
    }
}

/// All documents beside this test that are in files of such a name.
fn policy(wanted: impl Fn(&str) -> bool) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let yaml = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let chosen = yaml.filter(|path| wanted(&path.file_name().expect("a name").to_string_lossy()));
    let mut texts: Vec<String> = chosen.map(|path| std::fs::read_to_string(path).expect("text")).collect();
    texts.sort();
    texts.join("\n---\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_takes_nine_tenths_of_the_load_off_the_catalogue() {
    let shop = Shop::open().await;
    let without = shop.while_people_look().await;
    // The front page asks once; a product's page asks for the product, the catalogue, and through recommendations again.
    let asked = (ROUNDS * (1 + PRODUCTS.len() * 3)) as f64;
    assert!(without >= asked, "{without} of {asked}");

    shop.keep_answers().await;
    let with = shop.while_people_look().await;
    assert!(with > 0.0 && with * 10.0 <= without, "{without} without, {with} with the cache");

    let metrics = shop.storefront.sidecar.metrics().await;
    let hits = metrics.sum("weft_cache_requests_total", &["result=\"hit\"", "service=\"shop/product\""]);
    assert!(hits >= (ROUNDS * (1 + PRODUCTS.len() * 2)) as f64 * 0.9, "{hits} hits");
    let page = shop.look("/").await;
    assert!(page.contains("weft; hit; ttl="), "the storefront shows what the cache says: {page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_price_is_on_every_page_at_once_and_at_the_till_always() {
    let shop = Shop::open().await;
    shop.keep_answers().await;
    // Both editions are kept, of the front page and of the product's own.
    for _ in 0..60 {
        for path in ["/", "/products/dune-rug"] {
            assert!(shop.look(path).await.contains("€249.00"), "{path}");
        }
    }
    let (status, answer) = shop.send("/office", "product=dune-rug&price=199.50").await;
    assert_eq!(status, 303, "{answer}");
    for _ in 0..60 {
        for path in ["/", "/products/dune-rug"] {
            let page = shop.look(path).await;
            assert!(page.contains("€199.50") && !page.contains("€249.00"), "{path}: {page}");
        }
    }

    // Somebody changes the price where no sidecar sees it: shelves may show the old one for a while, the till may not.
    std::fs::write(shop.prices.path().join("dune-rug"), "12345\n").expect("written");
    let (status, answer) = shop.send("/cart", "product=dune-rug&quantity=1").await;
    assert_eq!(status, 303, "{answer}");
    let (status, cart) = {
        let request = "GET /cart HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ncookie: shop_session=0123456789abcdef\r\n\r\n";
        let answer = raw::exchange(shop.storefront.app, request).await;
        (answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()), answer)
    };
    assert!(status == Some(200) && cart.contains("€123.45 each"), "{cart}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_catalogue_the_shop_shows_its_shelves_and_sells_nothing_at_an_old_price() {
    let mut shop = Shop::open().await;
    shop.keep_answers().await;
    for _ in 0..60 {
        shop.look("/").await;
        shop.look("/products/dune-rug").await;
    }
    shop.products.clear();
    for _ in 0..20 {
        assert!(shop.look("/").await.contains("Dune rug"));
        assert!(shop.look("/products/dune-rug").await.contains("€249.00"));
    }
    let (status, answer) = shop.send("/cart", "product=dune-rug&quantity=1").await;
    assert!(status == 502 || status == 504, "{answer}");
}
