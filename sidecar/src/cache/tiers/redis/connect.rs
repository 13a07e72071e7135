//! Connections to a Redis server: reached, over TLS where policy says so, logged in, and found to be of use.

use super::{
    secret::{Credentials, Secrets},
    server::{BACKGROUND, Names},
    tls::Tls,
    trouble::Trouble,
};
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, RedisFuture, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::{AbortHandle, spawn_blocking},
    time::timeout,
};
use weft_config::snapshot::CacheRedis;

/// A connection for many at once. It ends with the last use of it.
#[derive(Clone)]
pub(super) struct Connection {
    pipe: MultiplexedConnection,
    _driver: Arc<Driver>,
}

/// What moves a connection's bytes. A server that hangs would keep it for ever.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.pipe.req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.pipe.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.pipe.get_db()
    }
}

/// What a sidecar has of a server.
pub(super) struct Connected {
    /// One for look-ups, so that they never wait behind a large answer.
    pub(super) for_requests: Connection,
    /// One for everything else.
    pub(super) for_the_rest: Connection,
    /// Which run of the server they lead to.
    pub(super) run: String,
}

/// Connects. Secrets are read for it each time; every step has its time.
pub(super) async fn connect(
    settings: &CacheRedis,
    secrets: &Secrets,
    names: &Names,
) -> Result<Connected, Trouble> {
    let (tls, credentials) = {
        let (settings, secrets) = (settings.clone(), secrets.clone());
        let read = spawn_blocking(move || {
            let tls = settings.tls.as_ref().map(|tls| Tls::read(tls, &secrets)).transpose()?;
            let secret = settings.credentials.as_ref().map(|secret| secrets.folder(secret)).transpose()?;
            let credentials = secret.map(|folder| folder.credentials()).transpose()?;
            Ok((tls, credentials))
        });
        match timeout(BACKGROUND, read).await {
            Ok(Ok(read)) => read?,
            Ok(Err(_)) | Err(_) => return Err(Trouble::Silent("reading secrets")),
        }
    };
    let one = || reach(&settings.address, tls.as_ref(), credentials.as_ref());
    let (for_requests, mut for_the_rest) = tokio::try_join!(one(), one())?;
    let told = redis::cmd("INFO").arg("server").query_async(&mut for_the_rest).await;
    let told: String = told.map_err(|error| Trouble::talk(&error))?;
    let run = told.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().trim();
    match names.trial(&mut for_the_rest).await {
        // A server that is full can still be asked.
        Err(error) if error.code() != Some("OOM") => return Err(Trouble::talk(&error)),
        _ => {}
    }
    Ok(Connected { for_requests, for_the_rest, run: run.to_owned() })
}

async fn reach(
    address: &str,
    tls: Option<&Tls>,
    credentials: Option<&Credentials>,
) -> Result<Connection, Trouble> {
    let stream = match timeout(BACKGROUND, TcpStream::connect(address)).await {
        Ok(reached) => reached.map_err(Trouble::Unreachable)?,
        Err(_) => return Err(Trouble::Unreachable(io::ErrorKind::TimedOut.into())),
    };
    stream.set_nodelay(true).map_err(Trouble::Unreachable)?;
    match tls {
        None => begin(stream, credentials).await,
        Some(tls) => {
            let handshake = tls.connector.connect(tls.server.clone(), stream);
            match timeout(BACKGROUND, handshake).await {
                Ok(Ok(stream)) => begin(stream, credentials).await,
                Ok(Err(error)) => Err(Trouble::handshake(&error)),
                Err(_) => Err(Trouble::Silent("TLS")),
            }
        }
    }
}

async fn begin<S>(stream: S, credentials: Option<&Credentials>) -> Result<Connection, Trouble>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Says nothing by itself: a login is the first thing that the server hears.
    let plain = RedisConnectionInfo::default().set_skip_set_lib_name();
    let settings = AsyncConnectionConfig::new().set_response_timeout(Some(BACKGROUND));
    let (pipe, driver) = MultiplexedConnection::new_with_config(&plain, stream, settings)
        .await
        .map_err(|error| Trouble::talk(&error))?;
    let driver = Arc::new(Driver(tokio::spawn(driver).abort_handle()));
    let mut connection = Connection { pipe, _driver: driver };
    if let Some(Credentials { user, password }) = credentials {
        let mut login = redis::cmd("AUTH");
        if let Some(user) = user {
            login.arg(user);
        }
        login.arg(password.reveal());
        let done: Result<(), _> = login.query_async(&mut connection).await;
        done.map_err(|error| Trouble::login(&error))?;
    }
    Ok(connection)
}
