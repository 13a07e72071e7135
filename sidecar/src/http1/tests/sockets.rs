//! What only real sockets show: resets, answers that must not be lost to them, and how much goes into a TLS record.

use super::*;
use crate::{
    io::Rewound,
    tls::{PendingKey, Tls},
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use std::{cell::Cell, future::pending};
use tokio::net::{
    TcpListener, TcpStream,
    tcp::{OwnedReadHalf, OwnedWriteHalf},
};
use weft_config::identity::MeshProtocol;

/// As `run`, with sockets and real time.
fn run_real(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(PATIENCE, test).await.expect("the test hangs") });
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(listener.accept(), connecting);
    (near.unwrap().0, far.unwrap())
}

#[test]
fn a_reset_cancels_at_once() {
    run_real(async {
        let started = Rc::new(Cell::new(false));
        let flag = started.clone();
        let (near, mut far) = pair().await;
        let handler = Answer(async move |_: Request<Body>, _: &dyn Back| {
            flag.set(true);
            pending().await
        });
        let serving =
            spawn_local(serve(Io::plain(near), Rc::new(handler), Settings::default(), Rc::default()));
        // Said to be the last: a plain close would be taken for a half-close and waited out.
        far.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        while !started.get() {
            tokio::task::yield_now().await;
        }
        far.set_zero_linger().unwrap();
        drop(far);
        timeout(PATIENCE, serving).await.expect("still waiting").unwrap();
    });
}

#[test]
fn a_refused_upload_still_reads_its_answer() {
    run_real(async {
        let (near, far) = pair().await;
        let handler = Answer(async |_: Request<Body>, _: &dyn Back| ok("x".repeat(100_000)));
        spawn_local(serve(Io::plain(near), Rc::new(handler), Settings::default(), Rc::default()));
        let (mut read, mut write) = far.into_split();
        let uploading = spawn_local(async move {
            write.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n").await.unwrap();
            for _ in 0..300 {
                if write.write_all(&[b'x'; 10_000]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
        });
        let mut answer = Vec::new();
        read.read_to_end(&mut answer).await.expect("the answer is lost to a reset");
        assert!(answer.ends_with(b"xxxx") && answer.len() > 100_000);
        uploading.abort();
    });
}

/// A workload's TLS, from a CA of its own for the test.
fn workload(ca: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>, id: &str) -> Tls {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = PendingKey::new().unwrap().0.into_key();
    let pair = rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.secret_der())).unwrap();
    let certificate = params.signed_by(&pair, ca).unwrap();
    let tls = Tls::new("weft.local");
    tls.set_identity(vec![certificate.der().clone()], key).unwrap();
    tls.set_roots(vec![ca.der().clone()]).unwrap();
    tls
}

/// Passes bytes on and counts the TLS records of application data among them.
async fn tap(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, records: Rc<Cell<usize>>) {
    let mut record = vec![0; 5];
    while from.read_exact(&mut record[..5]).await.is_ok() {
        let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(5 + length, 0);
        from.read_exact(&mut record[5..]).await.unwrap();
        records.set(records.get() + usize::from(record[0] == 23));
        if to.write_all(&record).await.is_err() {
            return;
        }
    }
}

#[test]
fn over_tls_a_message_is_as_few_records_as_can_hold_it() {
    const SERVER: &str = "spiffe://weft.local/ns/shop/sa/product";
    run_real(async {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let (here, there) = (workload(&ca, "spiffe://weft.local/ns/shop/sa/cart"), workload(&ca, SERVER));
        let ((near, tapped), (onward, far)) = (pair().await, pair().await);
        let (up, down) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let ((read, write), (far_read, far_write)) = (tapped.into_split(), onward.into_split());
        spawn_local(tap(read, far_write, up.clone()));
        spawn_local(tap(far_read, write, down.clone()));
        let expected = SERVER.parse().unwrap();
        let (near, far) = tokio::join!(
            here.connect(near, &expected, "8080.product.shop.weft", MeshProtocol::Http1, PATIENCE),
            there.accept(Rewound::new(Default::default(), far), PATIENCE),
        );
        let (near, far) = (near.ok().unwrap(), far.ok().unwrap().io);
        let handler = Answer(async |request: Request<Body>, _: &dyn Back| {
            let size = request.uri().path().trim_start_matches('/').parse().unwrap();
            let (body, _) = collect(request.into_body()).await.unwrap();
            let mut answer = body.to_vec();
            answer.resize(size, b'x');
            ok(answer)
        });
        let serving = spawn_local(serve(far, Rc::new(handler), Settings::default(), Rc::default()));
        let pool = Rc::new(Pool::default());
        let mut client = Box::new(Client::new(near, Settings::default()));
        for (sent, received, most_up, most_down) in
            [(0, 1, 1, 1), (100, 1_000, 1, 1), (10_000, 10_000, 1, 1), (60_000, 60_000, 4, 4)]
        {
            up.set(0);
            down.set(0);
            let body = Body::full(vec![b'y'; sent]);
            let request = Request::post(format!("/{received}")).header("host", "a").body(body).unwrap();
            let response = client.send(request, &Interims::default(), pool.clone()).await.ok().unwrap();
            assert_eq!(collect(response.into_body()).await.unwrap().0.len(), received);
            assert_eq!((up.get(), down.get()), (most_up, most_down), "for {sent} and {received} bytes");
            client = pool.0.borrow_mut().pop().unwrap();
            assert!(client.is_reusable());
        }
        drop(client);
        timeout(PATIENCE, serving).await.unwrap().unwrap();
    });
}
