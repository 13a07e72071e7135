use super::*;
use rcgen::CertificateParams;
use rustls::{
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    server::danger::ClientCertVerifier,
};
use rustls_pki_types::{ServerName, UnixTime};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::UNIX_EPOCH};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

fn settings(root: &Path) -> Settings {
    Settings { state_dir: root.join("state"), ..Settings::default() }
}

fn cart() -> SpiffeId {
    "spiffe://weft.local/ns/shop/sa/cart".parse().expect("valid")
}

fn request() -> Vec<u8> {
    let key = KeyPair::generate().expect("key");
    let names = vec!["evil.example".to_owned()];
    CertificateParams::new(names).expect("params").serialize_request(&key).expect("request").der().to_vec()
}

fn client_verifier(issuer: &Issuer) -> Arc<dyn ClientCertVerifier> {
    let mut roots = RootCertStore::empty();
    for root in issuer.trust().bundle.roots {
        roots.add(CertificateDer::from(root)).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("verifier")
}

fn verifies(issuer: &Issuer, chain: &[CertificateDer<'static>], after: Duration) -> bool {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let now = UnixTime::since_unix_epoch(since + after);
    client_verifier(issuer).verify_client_cert(&chain[0], &chain[1..], now).is_ok()
}

#[test]
fn a_leaf_carries_the_proven_identity_and_nothing_from_the_request() {
    let root = tempfile::tempdir().expect("temp dir");
    let issuer = Issuer::open(&settings(root.path())).expect("issuer");
    let chain = issuer.issue(&cart(), &request()).expect("issued");
    assert_eq!(chain.len(), 1);
    assert!(verifies(&issuer, &chain, Duration::ZERO));
    let (_, leaf) = X509Certificate::from_der(&chain[0]).expect("parses");
    let names = &leaf.subject_alternative_name().expect("one").expect("there").value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://weft.local/ns/shop/sa/cart")]);
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().expect("one").expect("there").value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().expect("one").expect("there").value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(leaf.raw_serial().len(), 16);
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert!((86_400..=86_462).contains(&life), "{life}");
}

#[test]
fn every_serial_number_is_another() {
    let root = tempfile::tempdir().expect("temp dir");
    let issuer = Issuer::open(&settings(root.path())).expect("issuer");
    let serials: std::collections::HashSet<Vec<u8>> = (0..50)
        .map(|_| {
            let chain = issuer.issue(&cart(), &request()).expect("issued");
            let (_, leaf) = X509Certificate::from_der(&chain[0]).expect("parses");
            leaf.raw_serial().to_vec()
        })
        .collect();
    assert_eq!(serials.len(), 50);
}

#[test]
fn five_second_certificates_live_five_seconds() {
    let root = tempfile::tempdir().expect("temp dir");
    let settings = Settings { certificate_ttl: Duration::from_secs(5), ..settings(root.path()) };
    let issuer = Issuer::open(&settings).expect("issuer");
    let chain = issuer.issue(&cart(), &request()).expect("issued");
    assert!(verifies(&issuer, &chain, Duration::ZERO));
    assert!(verifies(&issuer, &chain, Duration::from_millis(4_500)));
    assert!(!verifies(&issuer, &chain, Duration::from_secs(8)));
}

#[test]
fn the_ca_survives_a_restart_and_its_key_is_private() {
    let root = tempfile::tempdir().expect("temp dir");
    let settings = settings(root.path());
    let chain = Issuer::open(&settings).expect("issuer").issue(&cart(), &request()).expect("issued");
    let again = Issuer::open(&settings).expect("issuer");
    assert!(verifies(&again, &chain, Duration::ZERO));
    let mode =
        |name: &str| fs::metadata(settings.state_dir.join(name)).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode("ca.key"), mode("")), (0o600, 0o700));
}

#[test]
fn a_ca_key_that_others_can_read_is_refused() {
    let root = tempfile::tempdir().expect("temp dir");
    let settings = settings(root.path());
    Issuer::open(&settings).expect("issuer");
    let key = settings.state_dir.join("ca.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
    let error = format!("{:#}", Issuer::open(&settings).err().expect("refused"));
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn a_lost_key_is_an_error_and_not_a_new_ca() {
    let root = tempfile::tempdir().expect("temp dir");
    let settings = settings(root.path());
    Issuer::open(&settings).expect("issuer");
    fs::remove_file(settings.state_dir.join("ca.key")).expect("removed");
    assert!(format!("{:#}", Issuer::open(&settings).err().expect("refused")).contains("restore the key"));
}

#[test]
fn a_lost_ca_certificate_is_made_again_and_verifies_what_was_signed() {
    let root = tempfile::tempdir().expect("temp dir");
    let settings = settings(root.path());
    let chain = Issuer::open(&settings).expect("issuer").issue(&cart(), &request()).expect("issued");
    fs::remove_file(settings.state_dir.join("ca.pem")).expect("removed");
    assert!(verifies(&Issuer::open(&settings).expect("issuer"), &chain, Duration::ZERO));
}

#[test]
fn a_given_ca_signs_and_is_checked() {
    let root = tempfile::tempdir().expect("temp dir");
    let maker = settings(&root.path().join("maker"));
    Issuer::open(&maker).expect("issuer");
    let given = Settings {
        ca_cert: Some(maker.state_dir.join("ca.pem")),
        ca_key: Some(maker.state_dir.join("ca.key")),
        ..settings(root.path())
    };
    let issuer = Issuer::open(&given).expect("issuer");
    assert!(verifies(&issuer, &issuer.issue(&cart(), &request()).expect("issued"), Duration::ZERO));

    let other = settings(&root.path().join("other"));
    Issuer::open(&other).expect("issuer");
    let mixed = Settings { ca_key: Some(other.state_dir.join("ca.key")), ..given };
    let error = format!("{:#}", Issuer::open(&mixed).err().expect("refused"));
    assert!(error.contains("the key is not the one"), "{error}");
}

#[test]
fn an_intermediate_is_sent_along_and_only_its_root_is_trusted() {
    let dir = tempfile::tempdir().expect("temp dir");
    let ca = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        (params, KeyPair::generate().expect("key"))
    };
    let ((root, root_key), (middle, middle_key)) = (ca("root"), ca("middle"));
    let root_certificate = root.self_signed(&root_key).expect("signed");
    let middle_certificate =
        middle.signed_by(&middle_key, &rcgen::Issuer::new(root, root_key)).expect("signed");
    let (certificate, key) = (dir.path().join("chain.pem"), dir.path().join("middle.key"));
    fs::write(&certificate, middle_certificate.pem() + &root_certificate.pem()).expect("written");
    crate::private_file::create(&key, middle_key.serialize_pem().as_bytes()).expect("written");
    let settings = Settings { ca_cert: Some(certificate), ca_key: Some(key), ..settings(dir.path()) };
    let issuer = Issuer::open(&settings).expect("issuer");
    let chain = issuer.issue(&cart(), &request()).expect("issued");
    assert_eq!(chain.len(), 2);
    assert_eq!(issuer.trust().bundle.roots, [root_certificate.der().to_vec()]);
    assert!(verifies(&issuer, &chain, Duration::ZERO));
}

#[test]
fn a_leaf_certificate_is_no_ca() {
    let root = tempfile::tempdir().expect("temp dir");
    let key = KeyPair::generate().expect("key");
    let leaf = CertificateParams::new(vec!["a.example".to_owned()])
        .expect("params")
        .self_signed(&key)
        .expect("signed");
    let (certificate, key_file) = (root.path().join("a.pem"), root.path().join("a.key"));
    fs::write(&certificate, leaf.pem()).expect("written");
    crate::private_file::create(&key_file, key.serialize_pem().as_bytes()).expect("written");
    let settings = Settings { ca_cert: Some(certificate), ca_key: Some(key_file), ..settings(root.path()) };
    assert!(format!("{:#}", Issuer::open(&settings).err().expect("refused")).contains("no CA certificate"));
}

#[test]
fn roots_that_are_added_by_hand_change_the_bundle_while_it_runs() {
    let root = tempfile::tempdir().expect("temp dir");
    let settings = settings(root.path());
    let issuer = Issuer::open(&settings).expect("issuer");
    let before = issuer.trust();
    assert!(!issuer.refresh(true).expect("refreshed"));
    let other = self::settings(&root.path().join("other"));
    Issuer::open(&other).expect("issuer");
    fs::copy(other.state_dir.join("ca.pem"), settings.state_dir.join("roots.pem")).expect("copied");
    assert!(issuer.refresh(true).expect("refreshed"));
    assert_eq!(issuer.trust().bundle.roots.len(), 2);
    assert_ne!(issuer.trust().version, before.version);
    fs::write(settings.state_dir.join("roots.pem"), "nonsense").expect("written");
    assert!(issuer.refresh(true).is_err());
    assert_eq!(issuer.trust().bundle.roots.len(), 2, "a broken file changes nothing");
    fs::remove_file(settings.state_dir.join("roots.pem")).expect("removed");
    assert!(issuer.refresh(true).expect("refreshed"));
    assert_eq!(issuer.trust(), before);
}

#[test]
fn a_rotation_never_leaves_a_valid_certificate_untrusted() {
    let root = tempfile::tempdir().expect("temp dir");
    let settings = settings(root.path());
    let issuer = Issuer::open(&settings).expect("issuer");
    let old = issuer.issue(&cart(), &request()).expect("issued");
    prepare_rotation(&settings.state_dir, "weft.local").expect("prepared");
    assert!(prepare_rotation(&settings.state_dir, "weft.local").is_err(), "one at a time");

    assert!(issuer.refresh(false).expect("refreshed"), "the new root is announced");
    assert_eq!(issuer.trust().bundle.roots.len(), 2);
    assert!(!issuer.refresh(true).expect("refreshed"), "the overlap has only begun");
    assert_eq!(issuer.issue(&cart(), &request()).expect("issued").len(), 1);
    issuer.reload.lock().expect("lock").backdate(Duration::from_secs(60));
    assert!(!issuer.refresh(false).expect("refreshed"), "somebody does not trust it yet");

    let trusted = issuer.trust();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trusted.bundle.roots[1].clone())).expect("a root");
    issuer.refresh(true).expect("refreshed");
    let new = issuer.issue(&cart(), &request()).expect("issued");
    assert_eq!(issuer.trust().bundle.roots.len(), 2);
    assert!(verifies(&issuer, &new, Duration::ZERO) && verifies(&issuer, &old, Duration::ZERO));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let only_new =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("verifier");
    let now = UnixTime::now();
    assert!(only_new.verify_client_cert(&new[0], &[], now).is_ok());
    assert!(only_new.verify_client_cert(&old[0], &[], now).is_err());

    // After a restart it is the same.
    let again = Issuer::open(&settings).expect("issuer");
    assert!(verifies(&again, &new, Duration::ZERO) && verifies(&again, &old, Duration::ZERO));

    // Once everything that the old one signed has expired, it goes.
    let retired = fs::read_dir(&settings.state_dir)
        .expect("listed")
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("retired-"))
        .expect("the old root");
    fs::rename(retired.path(), settings.state_dir.join("retired-1000.pem")).expect("renamed");
    assert!(issuer.refresh(true).expect("refreshed"));
    assert_eq!(issuer.trust().bundle.roots.len(), 1);
    assert!(verifies(&issuer, &new, Duration::ZERO) && !verifies(&issuer, &old, Duration::ZERO));
}

#[test]
fn an_old_root_outlives_the_longest_certificate_it_signed_whatever_is_set_now() {
    let root = tempfile::tempdir().expect("temp dir");
    let day = settings(root.path());
    Issuer::open(&day).expect("issuer");
    let short = Settings { certificate_ttl: Duration::from_secs(5), ..day };
    let issuer = Issuer::open(&short).expect("issuer");
    prepare_rotation(&short.state_dir, "weft.local").expect("prepared");
    issuer.refresh(true).expect("refreshed");
    issuer.refresh(true).expect("refreshed");
    issuer.reload.lock().expect("lock").backdate(Duration::from_secs(60));
    issuer.refresh(true).expect("refreshed");
    let until: u64 = fs::read_dir(&short.state_dir)
        .expect("listed")
        .flatten()
        .filter_map(|entry| {
            entry.file_name().to_str()?.strip_prefix("retired-")?.strip_suffix(".pem")?.parse().ok()
        })
        .next()
        .expect("the old root");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(until - now > 86_000, "{}", until - now);
}

#[test]
fn a_switch_that_was_cut_short_is_finished_at_the_next_start() {
    let root = tempfile::tempdir().expect("temp dir");
    let settings = settings(root.path());
    Issuer::open(&settings).expect("issuer");
    prepare_rotation(&settings.state_dir, "weft.local").expect("prepared");
    fs::rename(settings.state_dir.join("next-ca.key"), settings.state_dir.join("ca.key")).expect("renamed");
    let issuer = Issuer::open(&settings).expect("opens");
    assert!(verifies(&issuer, &issuer.issue(&cart(), &request()).expect("issued"), Duration::ZERO));
    assert!(!settings.state_dir.join("next-ca.pem").exists());
}

#[test]
fn the_control_plane_proves_its_own_identity() {
    let root = tempfile::tempdir().expect("temp dir");
    let issuer = Issuer::open(&settings(root.path())).expect("issuer");
    let current = issuer.current.load();
    let key = KeyPair::generate().expect("key");
    let chain = current
        .authority
        .sign(
            &own_identity(&issuer.trust_domain),
            &key,
            &["localhost"],
            Duration::from_secs(60),
            SystemTime::now(),
        )
        .expect("signed");
    let mut roots = RootCertStore::empty();
    roots.add(current.authority.root().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("verifier");
    let name = ServerName::try_from("localhost").expect("a name");
    verifier.verify_server_cert(&chain[0], &[], &name, &[], UnixTime::now()).expect("verifies");
}
