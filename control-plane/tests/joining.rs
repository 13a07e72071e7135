//! Who may open a stream, and what it takes to get a certificate.

mod support;

use std::{net::SocketAddr, time::Duration};
use support::{CART, Credentials, PATIENCE, hello, start, start_with};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tonic::Code;
use weft_config::wire;
use weft_control_plane::token::{Claims, TokenKey};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

fn refused(opened: Result<support::Sidecar, tonic::Status>) -> tonic::Status {
    match opened {
        Ok(_) => panic!("it was let in"),
        Err(status) => status,
    }
}

#[tokio::test]
async fn without_a_token_and_a_certificate_nobody_is_let_in() {
    let f = start(&[("cart.yaml", CART)]).await;
    let status = refused(f.open(hello("shop", "cart", "cart", ""), None).await);
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("weft-control-plane token"), "{status}");
    assert!(f.status().await.sidecars.is_empty());
}

#[tokio::test]
async fn a_token_for_another_identity_is_refused() {
    let f = start(&[("cart.yaml", CART)]).await;
    let token = f.token("shop", "user");
    let status = refused(f.open(hello("shop", "cart", "cart", &token), None).await);
    assert_eq!(status.code(), Code::PermissionDenied);
    let token = f.token("other", "cart");
    let status = refused(f.open(hello("shop", "cart", "cart", &token), None).await);
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_token_for_one_workload_lets_no_other_in() {
    let f = start(&[]).await;
    let claims = Claims::for_next(PATIENCE, "shop", "cart", Some("cart-0".into()));
    let token = TokenKey::open_or_create(&f.settings.state_dir).expect("key").issue(&claims).expect("issued");
    f.open(hello("shop", "cart-0", "cart", &token), None).await.expect("let in");
    let status = refused(f.open(hello("shop", "cart-1", "cart", &token), None).await);
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let f = start(&[]).await;
    let claims = Claims { expires: 1_000_000, ..Claims::for_next(PATIENCE, "shop", "cart", None) };
    let token = TokenKey::open_or_create(&f.settings.state_dir).expect("key").issue(&claims).expect("issued");
    let status = refused(f.open(hello("shop", "cart", "cart", &token), None).await);
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("expired"), "{status}");
}

#[tokio::test]
async fn a_forged_token_is_refused() {
    let (f, other) = (start(&[]).await, start(&[]).await);
    for forged in [other.token("shop", "cart"), "weft1.e30.AAAA".to_owned(), "nonsense".to_owned()] {
        let status = refused(f.open(hello("shop", "cart", "cart", &forged), None).await);
        assert_eq!(status.code(), Code::Unauthenticated, "{forged}");
    }
    let (_, metrics) = support::get(f.running.addresses().metrics, "/metrics", "").await;
    assert!(
        metrics.contains("weft_control_plane_streams_refused_total{reason=\"foreign_token\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("weft_control_plane_streams_refused_total{reason=\"malformed_token\"}"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_document_says_which_service_account_may_run_its_workload() {
    let f = start(&[("cart.yaml", CART)]).await;
    let token = f.token("shop", "user");
    let status = refused(f.open(hello("shop", "cart", "user", &token), None).await);
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("serviceAccount: cart"), "{status}");
}

#[tokio::test]
async fn the_first_message_has_to_be_hello() {
    let f = start(&[]).await;
    let mut client = f.connect(None).await.expect("connects");
    let (sender, messages) = tokio::sync::mpsc::channel(1);
    let subscribe = wire::to_control_plane::Message::Subscribe(wire::Subscribe::default());
    sender.send(wire::ToControlPlane { message: Some(subscribe) }).await.expect("open");
    let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
    let status = client.sync(stream).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_token_brings_a_certificate_which_then_is_enough() {
    let f = start(&[("cart.yaml", CART)]).await;
    let token = f.token("shop", "cart");
    let mut first = f.open(hello("shop", "cart", "cart", &token), None).await.expect("let in");
    let credentials = first.certificate().await.expect("issued");
    let (_, leaf) = X509Certificate::from_der(&credentials.chain[0]).expect("parses");
    let names = &leaf.subject_alternative_name().expect("one").expect("there").value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://weft.local/ns/shop/sa/cart")]);

    let mut second = f.open(hello("shop", "cart", "cart", ""), Some(&credentials)).await.expect("let in");
    second.subscribe(&["workload/shop/cart", "trust"]).await;
    second.until("its resources", |holds| holds.len() == 2).await;
    second.certificate().await.expect("renewed");
}

#[tokio::test]
async fn a_certificate_proves_one_identity_only() {
    let f = start(&[]).await;
    let token = f.token("shop", "cart");
    let mut sidecar = f.open(hello("shop", "cart", "cart", &token), None).await.expect("let in");
    let credentials = sidecar.certificate().await.expect("issued");
    // Not even a good token for the other identity helps: the certificate decides.
    let token = f.token("shop", "user");
    let status = refused(f.open(hello("shop", "user", "user", &token), Some(&credentials)).await);
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_certificate_of_another_ca_does_not_even_connect() {
    let (f, other) = (start(&[]).await, start(&[]).await);
    let token = other.token("shop", "cart");
    let mut sidecar = other.open(hello("shop", "cart", "cart", &token), None).await.expect("let in");
    let foreign = sidecar.certificate().await.expect("issued");
    let status = refused(f.open(hello("shop", "cart", "cart", ""), Some(&foreign)).await);
    assert_ne!(status.code(), Code::Ok);
    let (_, metrics) = support::get(f.running.addresses().metrics, "/metrics", "").await;
    assert!(
        metrics.contains("weft_control_plane_handshakes_failed_total{reason=\"refused\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn an_expired_certificate_does_not_even_connect() {
    let f =
        start_with(&[], |s| weft_control_plane::Settings { certificate_ttl: Duration::from_secs(4), ..s })
            .await;
    let token = f.token("shop", "cart");
    let mut sidecar = f.open(hello("shop", "cart", "cart", &token), None).await.expect("let in");
    let credentials: Credentials = sidecar.certificate().await.expect("issued");
    f.open(hello("shop", "cart", "cart", ""), Some(&credentials)).await.expect("still good");
    tokio::time::sleep(Duration::from_millis(6_100)).await;
    refused(f.open(hello("shop", "cart", "cart", ""), Some(&credentials)).await);
}

#[tokio::test]
async fn a_request_with_a_bad_signature_is_refused_and_the_stream_lives_on() {
    let f = start(&[]).await;
    let token = f.token("shop", "cart");
    let mut sidecar = f.open(hello("shop", "cart", "cart", &token), None).await.expect("let in");
    let key = rcgen::KeyPair::generate().expect("key");
    let request = rcgen::CertificateParams::default().serialize_request(&key).expect("request");
    let mut broken = request.der().to_vec();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let why = sidecar.certificate_for(broken).await.expect_err("refused");
    assert!(why.contains("not signed by the key"), "{why}");
    assert!(sidecar.certificate_for(b"noise".to_vec()).await.is_err());
    sidecar.certificate().await.expect("a good one is issued");
}

#[tokio::test]
async fn a_connection_that_never_speaks_tls_is_closed() {
    let f = start(&[]).await;
    let address: SocketAddr = f.running.addresses().push;
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let mut byte = [0u8; 1];
    let closed = timeout(PATIENCE, stream.read(&mut byte)).await.expect("closed in time");
    assert!(matches!(closed, Ok(0) | Err(_)));
}
