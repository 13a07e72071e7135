//! Server and client together, as a proxy: what goes in at one end comes out at the other.

use super::*;
use crate::http1::strip_hop_by_hop;
use std::{cell::Cell, future::pending};
use tokio::{io::split, time::sleep};

/// A proxy whose upstream connections are the ends in the returned list, newest last.
fn proxy(pipe: usize) -> (Served, tokio::sync::mpsc::UnboundedReceiver<Peer>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let served =
        served_with(Settings::default(), pipe, async move |mut request: Request<Body>, back: &dyn Back| {
            let (near, far) = duplex(pipe);
            sender.send(Peer(far)).ok().unwrap();
            strip_hop_by_hop(request.headers_mut(), true);
            let client = Box::new(Client::new(Io::memory(near), Settings::default()));
            match client.send(request, back, Rc::new(Pool::default())).await {
                Ok(mut response) => {
                    strip_hop_by_hop(response.headers_mut(), true);
                    response
                }
                Err(failed) => {
                    let mut response = ok(failed.error.to_string());
                    *response.status_mut() = failed.error.kind.row().status;
                    response
                }
            }
        });
    (served, receiver)
}

#[test]
fn spelling_and_order_of_fields_survive_both_ways() {
    run(async {
        let (mut served, mut upstreams) = proxy(4096);
        let request = "GET /x HTTP/1.1\r\nhOST: a\r\nx-lower: 1\r\nSOAPAction: go\r\nContent-Type: t\r\n\r\n";
        served.peer.send(request).await;
        let mut upstream = upstreams.recv().await.unwrap();
        assert_eq!(upstream.read_until("\r\n\r\n").await, request);
        let response = "HTTP/1.1 200 OK\r\nserver: x\r\nETag: \"1\"\r\ncontent-length: 0\r\n\r\n";
        upstream.send(response).await;
        assert_eq!(served.peer.read_until("0\r\n\r\n").await, response);
    });
}

#[test]
fn an_upstreams_100_and_early_hints_reach_the_client() {
    run(async {
        let (mut served, mut upstreams) = proxy(4096);
        served
            .peer
            .send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
            .await;
        let mut upstream = upstreams.recv().await.unwrap();
        upstream.read_until("\r\n\r\n").await;
        assert!(served.peer.is_quiet().await, "only the upstream can say so");
        upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(served.peer.read_until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        served.peer.send("abc").await;
        upstream.read_until("abc").await;
        upstream.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let answer = served.peer.read_until("Length: 0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n"));
    });
}

#[test]
fn a_client_that_leaves_closes_the_upstream_connection() {
    run(async {
        let (mut served, mut upstreams) = proxy(4096);
        served.peer.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut upstream = upstreams.recv().await.unwrap();
        upstream.read_until("\r\n\r\n").await;
        served.ended().await;
        assert_eq!(upstream.read_to_end().await, "");
    });
}

#[test]
fn bodies_larger_than_memory_pass_with_backpressure() {
    run(async {
        const SIZE: usize = 64 * 1024 * 1024;
        let (mut served, mut upstreams) = proxy(16 * 1024);
        served.peer.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n")).await;
        let mut upstream = upstreams.recv().await.unwrap();
        upstream.read_until("\r\n\r\n").await;
        let sent = Rc::new(Cell::new(0));
        let (mut read, mut write) = split(served.peer.0);
        let progress = sent.clone();
        let sending = spawn_local(async move {
            let block = [b'x'; 8192];
            while progress.get() < SIZE {
                write.write_all(&block).await.unwrap();
                progress.set(progress.get() + block.len());
            }
        });
        // Nobody reads: no more than the buffers on the way fill up.
        sleep(Duration::from_secs(1)).await;
        assert!(sent.get() < 512 * 1024, "{} bytes are held somewhere", sent.get());
        let mut block = vec![0; 64 * 1024];
        let mut got = 0;
        while got < SIZE {
            got += upstream.0.read(&mut block).await.unwrap();
        }
        sending.await.unwrap();
        // And the same down.
        upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
        let sent = Rc::new(Cell::new(0));
        let progress = sent.clone();
        let sending = spawn_local(async move {
            let block = [b'y'; 8192];
            while progress.get() < SIZE {
                upstream.0.write_all(&block).await.unwrap();
                progress.set(progress.get() + block.len());
            }
        });
        sleep(Duration::from_secs(1)).await;
        assert!(sent.get() < 512 * 1024, "{} bytes are held somewhere", sent.get());
        let mut got = 0;
        while got < SIZE {
            got += read.read(&mut block).await.unwrap();
        }
        assert!(got > SIZE - 100);
        sending.await.unwrap();
    });
}

#[test]
fn an_upgrade_becomes_a_tunnel_and_nothing_passes_before_the_101() {
    run(async {
        let (mut served, mut upstreams) = proxy(4096);
        let request = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        served.peer.send(format!("{request}early")).await;
        let mut upstream = upstreams.recv().await.unwrap();
        assert_eq!(upstream.read_until("\r\n\r\n").await, request);
        assert!(upstream.is_quiet().await, "not before the upstream agrees");
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        upstream.send(format!("{switch}hello")).await;
        assert_eq!(served.peer.read_until("hello").await, format!("{switch}hello"));
        assert_eq!(upstream.read_until("early").await, "early");
        served.peer.send("more").await;
        upstream.read_until("more").await;
        // Each side closes by itself.
        served.peer.0.shutdown().await.unwrap();
        assert_eq!(upstream.read_to_end().await, "");
        upstream.send("last").await;
        drop(upstream);
        assert_eq!(served.peer.read_to_end().await, "last");
        served.ended().await;
    });
}

#[test]
fn an_upgrade_that_is_refused_is_an_ordinary_answer() {
    run(async {
        let (mut served, mut upstreams) = proxy(4096);
        let request = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        for _ in 0..2 {
            served.peer.send(request).await;
            let mut upstream = upstreams.recv().await.unwrap();
            upstream.read_until("\r\n\r\n").await;
            upstream.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
            assert!(served.peer.read_until("no").await.starts_with("HTTP/1.1 403 "));
        }
    });
}

#[test]
fn connect_becomes_a_tunnel() {
    run(async {
        let (mut served, mut upstreams) = proxy(4096);
        served.peer.send("CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n").await;
        let mut upstream = upstreams.recv().await.unwrap();
        assert!(upstream.read_until("\r\n\r\n").await.starts_with("CONNECT b:443 HTTP/1.1\r\n"));
        upstream.send("HTTP/1.1 200 OK\r\n\r\nserver first").await;
        assert_eq!(served.peer.read_until("first").await, "HTTP/1.1 200 OK\r\n\r\nserver first");
        served.peer.send("client").await;
        upstream.read_until("client").await;
    });
}

#[test]
fn an_idle_connection_is_small() {
    async fn never(_: Request<Body>, _: &dyn Back) -> Response<Body> {
        let big = [0_u8; 4096];
        pending::<()>().await;
        ok(big.to_vec())
    }
    let (near, _far) = duplex(64);
    let drain = Rc::new(Drain::default());
    let future = serve(Io::memory(near), Rc::new(Answer(never)), Settings::default(), drain);
    let task = size_of_val(&future);
    let shared = size_of::<RefCell<crate::http1::conn::Conn>>();
    assert!(task <= 768 && shared <= 512, "the task takes {task} bytes, its connection {shared}");
    assert!(size_of::<Client>() <= 512, "a pooled connection takes {} bytes", size_of::<Client>());
}
