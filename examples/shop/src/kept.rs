//! What callers may keep of an answer, for how long, and by which tags it can be taken back.

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::hash::{DefaultHasher, Hasher};

/// The answer's header that lists its tags.
const TAGS: HeaderName = HeaderName::from_static("cache-tag");

/// What may be kept of an answer.
pub(crate) struct Kept<'a> {
    /// Seconds for which it is good without asking again.
    pub(crate) seconds: u32,
    /// What it is about: whoever purges one of these purges it.
    pub(crate) tags: &'a [&'a str],
}

impl Kept<'_> {
    /// The answer with a document, or 304 to a caller who has one that says the same. `says` is what counts for that:
    /// which replica told it does not, so the tag is a weak one, and all replicas give the same.
    pub(crate) fn answer(
        &self,
        asked: &HeaderMap,
        document: &impl Serialize,
        says: &impl Serialize,
    ) -> Response {
        let tag = tag(says);
        let mut answer = match tag.as_ref().is_some_and(|tag| has(asked, tag)) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => Json(document).into_response(),
        };
        let headers = answer.headers_mut();
        headers.extend(tag.and_then(|tag| Some((header::ETAG, HeaderValue::try_from(tag).ok()?))));
        let control = HeaderValue::try_from(format!("max-age={}", self.seconds));
        headers.extend(control.ok().map(|control| (header::CACHE_CONTROL, control)));
        let tags = HeaderValue::try_from(self.tags.join(", "));
        headers.extend(tags.ok().map(|tags| (TAGS, tags)));
        answer
    }
}

/// Equal for what says the same, in every replica.
fn tag(says: &impl Serialize) -> Option<String> {
    let mut hasher = DefaultHasher::new();
    hasher.write(&serde_json::to_vec(says).ok()?);
    Some(format!("W/\"{:016x}\"", hasher.finish()))
}

/// Whether a caller says that it has this one.
fn has(asked: &HeaderMap, tag: &str) -> bool {
    let lists = asked.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|own| own.trim() == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: Kept<'_> = Kept { seconds: 30, tags: &["catalogue", "product-dune-rug"] };

    #[test]
    fn who_has_what_says_the_same_gets_no_body_whichever_replica_told_it() {
        let first = KEPT.answer(&HeaderMap::new(), &("product-v1-0", 7), &7);
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()["cache-control"], "max-age=30");
        assert_eq!(first.headers()["cache-tag"], "catalogue, product-dune-rug");
        let tag = first.headers()["etag"].to_str().expect("text").to_owned();
        let has =
            |tags: String| [(header::IF_NONE_MATCH, tags.parse().expect("a value"))].into_iter().collect();
        let again = KEPT.answer(&has(format!("\"other\", {tag}")), &("product-v1-1", 7), &7);
        assert_eq!(
            (again.status(), &again.headers()["etag"]),
            (StatusCode::NOT_MODIFIED, &first.headers()["etag"])
        );
        assert_eq!(again.headers()["cache-control"], "max-age=30", "it is good for another half minute");
        let changed = KEPT.answer(&has(tag), &("product-v1-1", 8), &8);
        assert_eq!(changed.status(), StatusCode::OK);
    }
}
