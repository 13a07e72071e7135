//! What people see of a Redis server that cannot be used: once why, with the cure, and never a password.

use super::*;
use weft_tests::processes::{Mesh, application::Application, get, run, write};

const PASSWORD: &str = "pa55-in-no-log";
const SERVERS: &str = "pa55-of-the-server";

fn mesh(tier: &str) -> Mesh {
    let serving = "---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: { name: product, namespace: shop }
spec: { service: product, serviceAccount: product, ports: [{ port: 8080, appProtocol: http }] }
";
    Mesh::start(&format!("{}{}{serving}", policy(tier), calling("caller")))
}

#[test]
fn a_wrong_password_is_said_once_with_the_cure_and_shown_nowhere() {
    let Some(redis) = Redis::start_with(&["--requirepass", SERVERS]) else { return };
    if weft_tests::processes::tool("curl", "curl").is_none() {
        return;
    }
    let mesh = mesh(&redis.tier_with("credentials: { secret: redis }"));
    let secrets = tempfile::tempdir().expect("a directory");
    write(&secrets.path().join("shop/redis/password"), PASSWORD);
    let dir = secrets.path().display().to_string();
    let app = Application::start();
    let _product = mesh.sidecar("product", &[(8080, app.port)]);
    let flags = ["--secrets-dir", &dir, "--log", "trace"];
    let caller = mesh.sidecar_with("caller", &[], &flags);
    let until = Instant::now() + PATIENCE;
    let refused = || {
        run(
            Command::new("curl")
                .args(["-q", "-s", "--noproxy", "", "--proxy", &format!("http://{}", caller.outbound)])
                .arg("http://product.shop:8080/"),
            PATIENCE,
        );
        let (_, metrics) = get(caller.metrics, "/metrics").expect("scraped");
        let line = metrics.lines().find(|line| line.contains("connects_total{result=\"refused\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_default()
    };
    while refused() < 3.0 {
        assert!(Instant::now() < until, "{}", caller.process.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = caller.process.log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("the cache does without Redis")).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    for part in ["WARN", "WRONGPASS", "shop/pages", "tiers.redis.credentials"] {
        assert!(said[0].contains(part), "{part}: {}", said[0]);
    }
    assert!(!log.contains(PASSWORD) && !log.contains(SERVERS), "{log}");
    for page in ["/cache", "/config_dump", "/routes", "/clusters", "/metrics"] {
        let (status, text) = get(caller.admin, page).expect("answered");
        assert!(status == 200 && !text.contains(PASSWORD), "{page}: {text}");
    }
    let (_, metrics) = get(caller.metrics, "/metrics").expect("scraped");
    assert!(!metrics.contains(PASSWORD));
    assert!(!mesh.control_plane.log().contains(PASSWORD));
}
