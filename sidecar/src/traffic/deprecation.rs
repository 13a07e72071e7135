//! Answers from what is going away say so (RFC 9745 `Deprecation`, RFC 8594 `Sunset`).

use http::{HeaderMap, HeaderName, HeaderValue, header};
use weft_config::snapshot::Deprecation;

static DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
static SUNSET: HeaderName = HeaderName::from_static("sunset");

/// Puts the fields into an answer. What the application says itself stands, field by field: it knows better what is
/// going away and when. A `Link` of ours comes beside others, unless one is about the deprecation already.
pub(crate) fn apply(deprecation: &Deprecation, headers: &mut HeaderMap) {
    if !headers.contains_key(&DEPRECATION) {
        headers.insert(DEPRECATION.clone(), deprecation.deprecation.clone());
    }
    if let Some(sunset) = &deprecation.sunset
        && !headers.contains_key(&SUNSET)
    {
        headers.insert(SUNSET.clone(), sunset.clone());
    }
    if let Some(link) = &deprecation.link
        && !headers.get_all(header::LINK).iter().any(is_about_deprecation)
    {
        headers.append(header::LINK, link.clone());
    }
}

/// Whether a `Link` has `deprecation` among its relations. It errs towards yes (the word within a target's own `rel=`
/// would count): then ours is left out.
fn is_about_deprecation(link: &HeaderValue) -> bool {
    let text = String::from_utf8_lossy(link.as_bytes()).to_ascii_lowercase();
    text.split("rel").skip(1).any(|rest| {
        let Some(value) = rest.trim_start().strip_prefix('=') else { return false };
        let value = value.trim_start();
        let relations = match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => value.split([';', ',', ' ', '\t']).next(),
        };
        relations.is_some_and(|all| all.split_ascii_whitespace().any(|one| one == "deprecation"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn going_away() -> Deprecation {
        Deprecation {
            of: "HTTPRoute shop/products (v1)".into(),
            deprecation: HeaderValue::from_static("@1769817600"),
            sunset: Some(HeaderValue::from_static("Thu, 31 Dec 2026 00:00:00 GMT")),
            link: Some(HeaderValue::from_static("<https://docs.example.com/v2>; rel=\"deprecation\"")),
        }
    }

    #[test]
    fn answers_say_since_when_until_when_and_what_instead() {
        let mut headers = HeaderMap::new();
        apply(&going_away(), &mut headers);
        assert_eq!(headers["deprecation"], "@1769817600");
        assert_eq!(headers["sunset"], "Thu, 31 Dec 2026 00:00:00 GMT");
        assert_eq!(headers["link"], "<https://docs.example.com/v2>; rel=\"deprecation\"");
        let mut headers = HeaderMap::new();
        apply(&Deprecation { sunset: None, link: None, ..going_away() }, &mut headers);
        assert_eq!(headers.len(), 1, "only what policy says");
    }

    #[test]
    fn what_the_application_says_itself_stands() {
        let mut headers = HeaderMap::new();
        headers.insert("deprecation", HeaderValue::from_static("@1700000000"));
        headers.insert("link", HeaderValue::from_static("</v3>; rel=\"deprecation\""));
        apply(&going_away(), &mut headers);
        assert_eq!(headers["deprecation"], "@1700000000");
        assert_eq!(headers["sunset"], "Thu, 31 Dec 2026 00:00:00 GMT", "what it leaves open is filled in");
        assert_eq!(headers.get_all("link").iter().count(), 1);
        apply(&going_away(), &mut headers);
        assert_eq!(headers.len(), 3, "and nothing comes twice");
    }

    #[rstest]
    #[case("</p2>; rel=\"next\"", 2)]
    #[case("</p2>; rel=next, </p0>; rel=prev", 2)]
    #[case("</deprecation>; rel=next", 2)]
    #[case("</a>; rel=\"next deprecation\"", 1)]
    #[case("</a>; REL = Deprecation; type=\"text/html\"", 1)]
    #[case("</p2>; rel=next, </a>; rel=deprecation", 1)]
    #[case("</a>; rel=\"deprecation", 1)]
    #[case("rel", 2)]
    #[case("", 2)]
    fn links_to_other_things_stay_beside_ours(#[case] link: &'static str, #[case] links: usize) {
        let mut headers = HeaderMap::new();
        headers.insert("link", HeaderValue::from_static(link));
        apply(&going_away(), &mut headers);
        assert_eq!(headers.get_all("link").iter().count(), links);
    }
}
