//! Finds a running mesh and asks its control plane.

use crate::{exit::Failure, up::state};
use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
    time::Duration,
};
use tokio::net::TcpStream;
use weft_control_plane::{status::Status, token::TokenKey};

/// Which mesh is meant.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Target {
    /// The control plane's dashboard address, HOST:PORT. Without it: the mesh that `weft up` runs from this directory
    /// or one above it.
    #[arg(long, env = "WEFT_MESH", value_name = "HOST:PORT")]
    pub(crate) mesh: Option<String>,
}

/// How long an operator's token is good that is made for one request.
const TOKEN_TTL: Duration = Duration::from_secs(60);
/// How long the control plane may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most that is read of an answer.
const LARGEST: usize = 256 * 1024 * 1024;

impl Target {
    /// The address of the control plane's status API.
    pub(crate) fn address(&self) -> Result<String, Failure> {
        match &self.mesh {
            Some(address) => authority(address),
            None => {
                let cwd = std::env::current_dir().context("the current directory cannot be read")?;
                the_one(state::running(&cwd)).map(|run| run.to_string())
            }
        }
    }
}

/// The dashboard of the mesh that runs this directory of policy, if one does as far as can be seen from here.
pub(crate) fn of_directory(directory: &Path) -> Result<Option<String>, Failure> {
    let wanted = directory
        .canonicalize()
        .map_err(|e| Failure::Usage(format!("{} cannot be found: {e}", directory.display())))?;
    let cwd = std::env::current_dir().context("the current directory cannot be read")?;
    let mut runs = state::running(&cwd);
    runs.extend(state::running(&wanted));
    runs.extend(state::running_in(&wanted));
    Ok(runs.into_iter().find(|run| run.directory == wanted).map(|run| run.dashboard.to_string()))
}

fn the_one(runs: Vec<state::RunFile>) -> Result<SocketAddr, Failure> {
    match runs.as_slice() {
        [] => Err(Failure::Other(anyhow!(
            "no running mesh is found from this directory upwards; start one with `weft up DIRECTORY`, or name its \
             dashboard with --mesh HOST:PORT"
        ))),
        [run] => Ok(run.dashboard),
        several => {
            let list: Vec<String> = several
                .iter()
                .map(|r| format!("--mesh {} ({})", r.dashboard, r.directory.display()))
                .collect();
            Err(Failure::Usage(format!("several meshes run here; say which: {}", list.join(", "))))
        }
    }
}

/// `HOST:PORT` of what the user typed, which may be a URL.
fn authority(text: &str) -> Result<String, Failure> {
    let plain = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    match plain.parse::<http::uri::Authority>() {
        Ok(authority) if authority.port_u16().is_some() && !plain.contains('@') => Ok(plain.to_owned()),
        _ => {
            Err(Failure::Usage(format!("`{text}` is no address; expected HOST:PORT, as in 127.0.0.1:15080")))
        }
    }
}

/// The body of a GET that must be answered with 200.
pub(crate) async fn get(address: &str, path: &str) -> anyhow::Result<Bytes> {
    let (status, body) = fetch(address, Request::get(path).body(Full::default())?, PATIENCE).await?;
    if status != StatusCode::OK {
        let text: String = String::from_utf8_lossy(&body).chars().take(500).collect();
        bail!("http://{address}{path} answered {status}: {}", text.trim());
    }
    Ok(body)
}

/// The control plane's status.
pub(crate) fn status(address: &str) -> Result<Status, Failure> {
    let body = wait_for(get(address, "/api/status"))??;
    let status = serde_json::from_slice(&body).with_context(|| {
        format!("{address} gave an answer that is no status; is it a control plane of this version?")
    })?;
    Ok(status)
}

/// The answer to a POST of JSON by an operator, who gives the control plane `wait` for it.
pub(crate) async fn post(
    address: &str,
    path: &str,
    token: &str,
    body: Vec<u8>,
    wait: Duration,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Full::from(body))
        .context("the operator's token is no token")?;
    fetch(address, request, wait + PATIENCE).await
}

/// What lets an operator change something: the token in a file, or a short-lived one made with the keys of a mesh that
/// `weft up` runs from here.
pub(crate) fn operator_token(address: &str, file: Option<&Path>) -> Result<String, Failure> {
    if let Some(file) = file {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("the operator's token {} cannot be read", file.display()))?;
        return Ok(text.trim().to_owned());
    }
    let cwd = std::env::current_dir().context("the current directory cannot be read")?;
    let mut addresses = address.to_socket_addrs().into_iter().flatten();
    let keys = addresses.find_map(|address| state::keys_of(&cwd, address));
    let Some(keys) = keys else {
        return Err(Failure::Usage(format!(
            "{address} wants an operator's token: `weft control-plane operator-token --state-dir DIR > FILE` where it \
             runs makes one, which is given by --token-file FILE"
        )));
    };
    Ok(TokenKey::open_or_create(&keys)?.issue_operator(TOKEN_TTL)?)
}

async fn fetch(
    address: &str,
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> anyhow::Result<(StatusCode, Bytes)> {
    tokio::time::timeout(patience, exchange(address, request))
        .await
        .map_err(|_| anyhow!("{address} did not answer within {} s", patience.as_secs()))?
}

async fn exchange(address: &str, mut request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(address).await.with_context(|| {
        format!("cannot connect to {address}; does the mesh still run? (`weft up DIRECTORY` starts one)")
    })?;
    // The dashboard answers to addresses only, not to names that anybody could have pointed at it.
    let host = stream.peer_addr()?.to_string();
    request.headers_mut().insert(header::HOST, host.parse()?);
    request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|e| anyhow!(e))?.to_bytes();
    connection.abort();
    Ok((status, body))
}

/// Runs a verb that only waits for a few answers.
pub(crate) fn wait_for<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn an_address_or_a_url_is_understood_and_nothing_else() {
        assert_eq!(authority("127.0.0.1:15080").expect("valid"), "127.0.0.1:15080");
        assert_eq!(authority("http://mesh.example:80/").expect("valid"), "mesh.example:80");
        assert_eq!(authority("[::1]:15080").expect("valid"), "[::1]:15080");
        for bad in ["", "localhost", "127.0.0.1", "user@host:1", "a b:1", "https://x:1/y"] {
            assert!(matches!(authority(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn of_several_meshes_the_user_must_name_one() {
        let run = |port: u16| state::RunFile {
            pid: 1,
            directory: format!("/mesh/{port}").into(),
            dashboard: ([127, 0, 0, 1], port).into(),
            metrics: ([127, 0, 0, 1], 1).into(),
            control_plane: ([127, 0, 0, 1], 1).into(),
            instances: Vec::new(),
        };
        assert_eq!(the_one(vec![run(1)]).expect("one").port(), 1);
        let text = the_one(vec![run(1), run(2)]).expect_err("two").to_string();
        assert!(text.contains("--mesh 127.0.0.1:1 (/mesh/1)") && text.contains(":2"), "{text}");
        assert!(the_one(Vec::new()).expect_err("none").to_string().contains("weft up"));
    }

    async fn serve_once(answer: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address").to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            let mut head = [0u8; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        address
    }

    #[tokio::test]
    async fn a_good_answer_is_its_body_and_a_bad_one_an_error_with_its_text() {
        let good = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(get(&good, "/api/status").await.expect("an answer"), "ok");
        let bad = serve_once("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 8\r\n\r\nstarting").await;
        let error = get(&bad, "/api/status").await.expect_err("an error").to_string();
        assert!(error.contains("503") && error.contains("starting"), "{error}");
    }

    #[tokio::test]
    async fn nobody_there_says_what_to_do() {
        let error = format!("{:#}", get("127.0.0.1:1", "/").await.expect_err("refused"));
        assert!(error.contains("weft up"), "{error}");
    }
}
