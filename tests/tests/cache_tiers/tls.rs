//! Redis over TLS: with the right authority, a wrong one, another name, certificates on both sides, and none at all.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// A certificate authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "the platform");
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key.
    fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }
}

/// A server whose certificate is for `names`.
fn start(authority: &Authority, names: &[&str], clients: &str) -> Option<Redis> {
    let dir = tempfile::tempdir().expect("a directory");
    let (certificate, key) = authority.issue(names);
    let mut arguments = vec!["--tls-auth-clients".to_owned(), clients.to_owned()];
    for (flag, file, text) in [
        ("--tls-cert-file", "server.crt", &certificate),
        ("--tls-key-file", "server.key", &key),
        ("--tls-ca-cert-file", "ca.crt", &authority.pem),
    ] {
        std::fs::write(dir.path().join(file), text).expect("written");
        arguments.extend([flag.to_owned(), dir.path().join(file).display().to_string()]);
    }
    // It has read its files once it listens.
    Redis::start_by(|port| {
        let plain = ["--port", "0", "--requirepass", "s3cret", "--tls-port"].map(str::to_owned);
        plain.into_iter().chain([port]).chain(arguments.clone()).collect()
    })
}

async fn set(redis: &Redis, tls: &str, files: &[(&str, &str)]) -> Stage {
    let (app, _) = counting().await;
    let tier = redis.tier_with(&format!("credentials: {{ secret: redis }}{tls}"));
    let stage = Stage::set(&policy(&tier), [Instance::new("product", app)]).await;
    stage.mesh.secret("redis", "password", "s3cret");
    for (file, text) in files {
        stage.mesh.secret("redis", file, text);
    }
    stage
}

const TLS: &str = ", tls: { secret: redis }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_right_authority_it_is_used() {
    let authority = Authority::new();
    let Some(redis) = start(&authority, &["127.0.0.1"], "no") else { return };
    let stage = set(&redis, TLS, &[("ca.crt", &authority.pem)]).await;
    let path = until_kept(&stage.caller, &stage.client, REDIS, "page").await;
    let (second, client) = stage.another("second").await;
    is_there(&second, REDIS).await;
    is_hit_of(&client.get(&format!("{URL}{path}")).await, "redis");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_authority_is_refused_until_the_file_is_right() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let Some(redis) = start(&authority, &["127.0.0.1"], "no") else { return };
    let stage = set(&redis, TLS, &[("ca.crt", &stranger.pem)]).await;
    is_away_for(&stage, "tls").await;
    stage.mesh.secret("redis", "ca.crt", &format!("{}{}", stranger.pem, authority.pem));
    is_there(&stage.caller, REDIS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_who_the_policy_says_or_nobody() {
    let authority = Authority::new();
    let Some(redis) = start(&authority, &["redis.internal"], "no") else { return };
    let stage = set(&redis, TLS, &[("ca.crt", &authority.pem)]).await;
    is_away_for(&stage, "tls").await;
    let named = ", tls: { secret: redis, serverName: redis.internal }";
    let stage = set(&redis, named, &[("ca.crt", &authority.pem)]).await;
    until_kept(&stage.caller, &stage.client, REDIS, "page").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_a_certificate_is_shown_one() {
    let authority = Authority::new();
    let Some(redis) = start(&authority, &["127.0.0.1"], "yes") else { return };
    let stage = set(&redis, TLS, &[("ca.crt", &authority.pem)]).await;
    is_away_for(&stage, "tls").await;
    let (certificate, key) = authority.issue(&["sidecar.shop"]);
    stage.mesh.secret("redis", "tls.key", &key);
    stage.mesh.secret("redis", "tls.crt", &certificate);
    is_there(&stage.caller, REDIS).await;
    until_kept(&stage.caller, &stage.client, REDIS, "page").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_to_a_port_for_tls_and_tls_to_one_that_is_not_fail_well() {
    let authority = Authority::new();
    let Some(redis) = start(&authority, &["127.0.0.1"], "no") else { return };
    let stage = set(&redis, "", &[]).await;
    is_away_for(&stage, "error").await;
    let Some(redis) = Redis::start() else { return };
    let stage = set(&redis, TLS, &[("ca.crt", &authority.pem)]).await;
    let came = eventually("it is said why", PATIENCE + SELDOM, || async {
        is_from_the_origin(&stage.client.get(&format!("{URL}/{}", fastrand::u64(..))).await);
        // A server that waits for the end of a line says nothing at all.
        for came in ["tls", "timeout"] {
            if connects(&stage.caller, came).await > 0 {
                return Some(came);
            }
        }
        None
    });
    is_away_for(&stage, came.await).await;
}
