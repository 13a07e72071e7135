//! Redis servers that want to know who is there: the right password, none, a wrong one, a new one, and too few rights.

use super::*;

const CREDENTIALS: &str = "credentials: { secret: redis }";

async fn set(redis: &Redis, password: Option<&str>) -> Stage {
    let (app, _) = counting().await;
    let stage = Stage::set(&policy(&redis.tier_with(CREDENTIALS)), [Instance::new("product", app)]).await;
    // Policy comes with the first request, and so does the need to log in.
    if let Some(password) = password {
        stage.mesh.secret("redis", "password", password);
    }
    stage
}

/// Kept by one sidecar, found by another.
async fn works(stage: &Stage) {
    let path = until_kept(&stage.caller, &stage.client, REDIS, "page").await;
    let (second, client) = stage.another("second").await;
    is_there(&second, REDIS).await;
    is_hit_of(&client.get(&format!("{URL}{path}")).await, "redis");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_right_password_it_is_used() {
    let Some(redis) = Redis::start_with(&["--requirepass", "right and long"]) else { return };
    let stage = set(&redis, Some("right and long\n")).await;
    works(&stage).await;
    assert_eq!(
        (connects(&stage.caller, "connected").await, connects(&stage.caller, "refused").await),
        (1, 0)
    );
}

/// The line of the documentation that makes a user, whose password is `PASSWORD` there.
fn documented_user() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/caching.md");
    let text = std::fs::read_to_string(path).expect("docs/caching.md");
    let line = text.lines().find(|line| line.starts_with("user weft on "));
    line.expect("a line that makes a user").replace("PASSWORD", "s3cret")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_documented_rights_can_do_everything() {
    let line = documented_user();
    let words: Vec<&str> = line.split_whitespace().collect();
    let arguments = [&["--user"], &words[1..], &["--user", "default", "off"]].concat();
    let Some(redis) = Redis::start_with(&arguments) else { return };
    let stage = set(&redis, Some("s3cret")).await;
    stage.mesh.secret("redis", "username", "weft\n");
    works(&stage).await;
    // Variants and changes take other commands than pages do.
    let before = kept(&stage.caller, REDIS).await;
    let answer = stage.client.get_with(&format!("{URL}/varies"), &[("accept-language", "de")]).await;
    assert_eq!(answer.status, 200);
    eventually("the variant is kept", PATIENCE, || async {
        (kept(&stage.caller, REDIS).await > before).then_some(())
    })
    .await;
    let changed = Request::put(format!("{URL}/varies")).body(empty()).expect("valid");
    assert_eq!(stage.client.call(changed).await.status, 200);
    let admin = stage.caller.addresses().admin;
    let purge = format!(
        "POST /cache/purge?all=1 HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    let purged = weft_tests::raw::exchange(admin, purge).await;
    assert!(purged.starts_with("HTTP/1.1 200"), "{purged}");
    until_kept(&stage.caller, &stage.client, REDIS, "after").await;
    let metrics = stage.caller.metrics().await;
    assert_eq!(metrics.sum("weft_cache_tier_purge_failures_total", &[REDIS]), 0.0);
    assert_eq!(metrics.sum("weft_cache_tier_writes_total", &[REDIS, "result=\"error\""]), 0.0);
    assert_eq!(look_ups(&stage.caller, REDIS, "error").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_rights_show_before_anything_is_asked_for() {
    let line = documented_user();
    let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "+hget").collect();
    let Some(redis) = Redis::start_with(&[&["--user"], &words[1..]].concat()) else { return };
    let stage = set(&redis, Some("s3cret")).await;
    stage.mesh.secret("redis", "username", "weft");
    is_away_for(&stage, "refused").await;
    redis.tell(&["ACL SETUSER weft +hget"]);
    works(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_or_none_costs_no_request_anything_until_the_file_is_right() {
    let Some(redis) = Redis::start_with(&["--requirepass", "right"]) else { return };
    let stage = set(&redis, None).await;
    is_away_for(&stage, "secret").await;
    stage.mesh.secret("redis", "password", "wrong");
    is_away_for(&stage, "refused").await;
    stage.mesh.secret("redis", "password", "right");
    works(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wants_a_password_is_away_for_a_policy_that_names_none() {
    let Some(redis) = Redis::start_with(&["--requirepass", "right"]) else { return };
    let (app, _) = counting().await;
    let stage =
        Stage::set(&policy(&redis.tier_with("prefix: 'weft:'")), [Instance::new("product", app)]).await;
    is_away_for(&stage, "refused").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_takes_effect_without_a_restart() {
    let Some(redis) = Redis::start_with(&["--requirepass", "old"]) else { return };
    let stage = set(&redis, Some("old")).await;
    until_kept(&stage.caller, &stage.client, REDIS, "before").await;
    stage.mesh.secret("redis", "password", "new");
    redis.tell(&["AUTH old", "CONFIG SET requirepass new", "CLIENT KILL TYPE normal SKIPME yes"]);
    eventually("it is connected to again", PATIENCE + SELDOM, || async {
        assert_eq!(stage.client.get(&format!("{URL}/meanwhile")).await.status, 200);
        (connects(&stage.caller, "connected").await > 1).then_some(())
    })
    .await;
    works(&stage).await;
}
