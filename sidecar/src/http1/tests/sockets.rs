//! What only real sockets show: resets, and that waiting costs no system call and no memory.

use super::*;
use std::{cell::Cell, future::pending};
use tokio::net::{TcpListener, TcpStream};

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
        timeout(Duration::from_millis(500), serving).await.expect("still waiting").unwrap();
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
