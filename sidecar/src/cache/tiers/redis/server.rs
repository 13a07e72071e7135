//! What is said to a Redis server. All of a policy's keys there begin with the policy's prefix and a digest of its name.
//!
//! - The state: a hash with the generation (`g`), the number of the last purge (`s`) and of the last one by hand (`l`),
//!   the last one that is forgotten (`f`), and which run of the server they are of (`r`). A server that started anew may
//!   have lost purges and kept answers; then a new generation begins, and nothing of the one before is looked at.
//! - The log: purges by hand, a sorted set by their numbers.
//! - One hash for each URI with all answers under it, so that a change of it takes them out at once, however many there
//!   are, and leaves the number of that purge behind (`m`): an answer that was asked for before it is not taken after.

use super::super::{
    directory::{Place, place},
    wider::Wider,
};
use super::connect::Connection;
use redis::RedisResult;
use std::time::Duration;

/// How long anything may take that no request waits for.
pub(super) const BACKGROUND: Duration = Duration::from_secs(1);
/// Purges by hand that are remembered.
const LOGGED_MAX: usize = 256;
/// Answers under one URI.
const FIELDS_MAX: usize = 512;
/// How long it is remembered that a URI was purged: longer than any answer is on its way.
const MARK_MS: u64 = 3_600_000;
/// How long the state outlives its last use.
const STATE_MS: u64 = 30 * 86_400_000;
/// The longest time that an answer is kept, whatever it says.
const KEPT_MAX_S: u32 = 30 * 86_400;

/// Does once all that is ever done there, with keys that are gone afterwards: who may not, or cannot, shows it before
/// anything is entrusted to them.
const TRIAL: &str = "
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'n', '0')
redis.call('HINCRBY', KEYS[1], 'n', 1)
redis.call('HMGET', KEYS[1], 'n')
redis.call('HGET', KEYS[1], 'n')
redis.call('HLEN', KEYS[1])
redis.call('HEXISTS', KEYS[1], 'n')
redis.call('PTTL', KEYS[1])
redis.call('PEXPIRE', KEYS[1], 1000)
redis.call('ZADD', KEYS[2], 1, 'n')
redis.call('ZCARD', KEYS[2])
redis.call('ZRANGE', KEYS[2], 0, 1)
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, 1)
redis.call('DEL', KEYS[1], KEYS[2])
return 1";

/// Reads the state, and begins a generation where there is none or the server is not the one that it is of.
const STATE: &str = "
local v = redis.call('HMGET', KEYS[1], 'g', 's', 'l', 'f', 'r')
if not v[1] or not v[2] or not v[3] or not v[4] or v[5] ~= ARGV[1] then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'g', ARGV[2], 's', '0', 'l', '0', 'f', '0', 'r', ARGV[1])
  v = {ARGV[2], '0', '0', '0'}
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {v[1], v[2], v[3], v[4]}";

/// Takes an answer in, unless its URI was purged since it was asked for.
const KEEP: &str = "
local m = redis.call('HGET', KEYS[1], 'm')
if m and tonumber(m) > tonumber(ARGV[1]) then return 0 end
local ttl = tonumber(ARGV[2])
local left = redis.call('PTTL', KEYS[1])
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) and redis.call('HEXISTS', KEYS[1], ARGV[4]) == 0 then
  redis.call('DEL', KEYS[1])
  if m then redis.call('HSET', KEYS[1], 'm', m) end
  left = -2
  if m then ttl = math.max(ttl, tonumber(ARGV[8])) end
end
redis.call('HSET', KEYS[1], ARGV[4], ARGV[5])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], ARGV[6], ARGV[7]) end
if left < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
return 1";

/// Purges one URI.
const PURGE_URI: &str = "
if redis.call('HGET', KEYS[2], 'g') ~= ARGV[1] then return -1 end
local s = redis.call('HINCRBY', KEYS[2], 's', 1)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'm', s)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return s";

/// Purges by hand; the same purge again only gets a new number.
const PURGE_WIDE: &str = "
if redis.call('HGET', KEYS[1], 'g') ~= ARGV[1] then return -1 end
local s = redis.call('HINCRBY', KEYS[1], 's', 1)
redis.call('ZADD', KEYS[2], s, ARGV[2])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[3])
if over > 0 then
  local last = redis.call('ZRANGE', KEYS[2], over - 1, over - 1, 'WITHSCORES')
  redis.call('HSET', KEYS[1], 'f', last[2])
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, over - 1)
end
redis.call('HSET', KEYS[1], 'l', s)
return s";

/// What a sidecar must know of a policy's purges to tell whether what it reads holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: u64,
    /// The last purge.
    pub(super) latest: u64,
    /// The last purge by hand.
    pub(super) wide: u64,
    /// The last purge by hand that is forgotten.
    pub(super) forgotten: u64,
}

/// What is read of one URI, and the state after that.
type Read = (Vec<Option<Vec<u8>>>, (Option<u64>, Option<u64>, Option<u64>, Option<u64>));

/// The names of a policy's keys.
pub(super) struct Names {
    /// What all of them begin with.
    own: Vec<u8>,
    state: Vec<u8>,
    log: Vec<u8>,
}

/// An answer to be kept.
pub(super) struct Gift<'a> {
    pub(super) uri: &'a [u8],
    /// The last purge that was known when it was asked for.
    pub(super) since: u64,
    pub(super) seconds: u32,
    pub(super) place: Place,
    pub(super) bytes: &'a [u8],
    /// For a variant: where the directory is, and what it is from now on.
    pub(super) directory: Option<(Place, Vec<u8>)>,
}

impl Names {
    pub(super) fn new(prefix: &str, policy: &str) -> Self {
        let mut own = prefix.as_bytes().to_vec();
        own.extend(hex(&place(&[policy.as_bytes()])[..8]));
        own.push(b':');
        Self { state: [&own[..], b"state"].concat(), log: [&own[..], b"purges"].concat(), own }
    }

    /// Fails where the server does not let us do what has to be done.
    pub(super) async fn trial(&self, connection: &mut Connection) -> RedisResult<()> {
        // Those of others who come at the same time are other ones.
        let key = |what: &str| [&self.own[..], what.as_bytes(), &fastrand::u64(..).to_be_bytes()].concat();
        let mut command = redis::cmd("EVAL");
        command.arg(TRIAL).arg(2).arg(key("trial:")).arg(key("trial:"));
        command.query_async(connection).await
    }

    fn uri(&self, generation: u64, uri: &[u8]) -> Vec<u8> {
        let mut key = self.own.clone();
        key.extend(hex(&generation.to_be_bytes()));
        key.push(b':');
        key.extend(hex(&place(&[uri])));
        key
    }

    /// The state, which a first one makes; `run` says which run of the server this is, `fresh` names a new generation.
    pub(super) async fn state(
        &self,
        connection: &mut Connection,
        run: &str,
        fresh: u64,
    ) -> RedisResult<State> {
        let mut command = redis::cmd("EVAL");
        command.arg(STATE).arg(2).arg(&self.state[..]).arg(&self.log[..]);
        command.arg(run).arg(fresh).arg(STATE_MS);
        let (generation, latest, wide, forgotten) = command.query_async(connection).await?;
        Ok(State { generation, latest, wide, forgotten })
    }

    /// What lies at these places under a URI, and then the state: in this order, so that a purge of what was read is
    /// seen. `None` for the state where there is none.
    pub(super) async fn read(
        &self,
        connection: &mut Connection,
        generation: u64,
        uri: &[u8],
        places: &[Place],
    ) -> RedisResult<(Vec<Option<Vec<u8>>>, Option<State>)> {
        let mut pipe = redis::pipe();
        let values = pipe.cmd("HMGET").arg(self.uri(generation, uri));
        for place in places {
            values.arg(&place[..]);
        }
        pipe.cmd("HMGET").arg(&self.state[..]).arg("g").arg("s").arg("l").arg("f");
        let (values, state): Read = pipe.query_async(connection).await?;
        let state = match state {
            (Some(generation), Some(latest), Some(wide), Some(forgotten)) => {
                Some(State { generation, latest, wide, forgotten })
            }
            _ => None,
        };
        Ok((values, state))
    }

    /// What lies at one place.
    pub(super) async fn one(
        &self,
        connection: &mut Connection,
        generation: u64,
        uri: &[u8],
        at: Place,
    ) -> RedisResult<Option<Vec<u8>>> {
        redis::cmd("HGET").arg(self.uri(generation, uri)).arg(&at[..]).query_async(connection).await
    }

    /// The purges by hand with their numbers.
    pub(super) async fn logged(&self, connection: &mut Connection) -> RedisResult<Vec<(Wider, u64)>> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(&self.log[..]).arg(0).arg(LOGGED_MAX).arg("WITHSCORES");
        let logged: Vec<(Vec<u8>, u64)> = command.query_async(connection).await?;
        Ok(logged.into_iter().map(|(text, number)| (Wider::from_bytes(&text), number)).collect())
    }

    /// Gives an answer to be kept. False if it was purged since it was asked for.
    pub(super) async fn keep(
        &self,
        connection: &mut Connection,
        generation: u64,
        gift: &Gift<'_>,
    ) -> RedisResult<bool> {
        let milliseconds = u64::from(gift.seconds.clamp(1, KEPT_MAX_S)) * 1000;
        let mut command = redis::cmd("EVAL");
        command.arg(KEEP).arg(1).arg(self.uri(generation, gift.uri));
        command.arg(gift.since).arg(milliseconds).arg(FIELDS_MAX).arg(&gift.place[..]).arg(gift.bytes);
        match &gift.directory {
            Some((at, directory)) => command.arg(&at[..]).arg(&directory[..]),
            None => command.arg("").arg(""),
        };
        let kept: i64 = command.arg(MARK_MS).query_async(connection).await?;
        Ok(kept == 1)
    }

    /// Tells of purges, those of URIs and then those by hand. Gives the numbers they got; -1 where the generation is
    /// another one by now.
    pub(super) async fn purge(
        &self,
        connection: &mut Connection,
        generation: u64,
        uris: &[Box<[u8]>],
        wide: &[Wider],
    ) -> RedisResult<Vec<i64>> {
        let mut pipe = redis::pipe();
        for uri in uris {
            let key = self.uri(generation, uri);
            let command = pipe.cmd("EVAL").arg(PURGE_URI).arg(2).arg(key).arg(&self.state[..]);
            command.arg(generation).arg(MARK_MS);
        }
        for wider in wide {
            let command = pipe.cmd("EVAL").arg(PURGE_WIDE).arg(2).arg(&self.state[..]).arg(&self.log[..]);
            command.arg(generation).arg(wider.to_bytes()).arg(LOGGED_MAX);
        }
        pipe.query_async(connection).await
    }
}

fn hex(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let digit = |value: u8| b"0123456789abcdef"[usize::from(value & 15)];
    bytes.iter().flat_map(move |byte| [digit(byte >> 4), digit(*byte)])
}
