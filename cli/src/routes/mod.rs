//! `weft routes`: which route a request would take, and why.

mod answer;

use crate::{
    documents,
    excerpt::Sources,
    exit::Failure,
    mesh,
    terminal::{self, ColourChoice, Palette},
};
pub(crate) use answer::Answer;
use answer::Endpoints;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use std::path::PathBuf;
use weft_config::compile::Caller;

/// Show which route a request would take, and why.
///
/// Every route of the called service is shown in order of precedence, with the reason why the request does not take it.
/// Without a directory, the policy that is in force in the running mesh is asked.
#[derive(clap::Args, Clone, Debug)]
#[command(
    override_usage = "weft routes [OPTIONS] [DIRECTORY] <METHOD> <URL>",
    after_help = "Examples:
  weft routes --from shop GET http://product:8080/products/7
  weft routes --from shop/cart GET http://product:8080/products/7
  weft routes examples/shop --from shop GET http://product:8080/ -H 'x-canary: 1'
  weft routes --mesh 127.0.0.1:15080 --from shop POST http://inventory:50051/shop.Inventory/Reserve

Exit code 1 if the request would not be forwarded anywhere."
)]
pub(crate) struct Options {
    #[command(flatten)]
    asked: Asked,
}

/// Which request of whom, and by which policy.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Asked {
    /// METHOD URL, or DIRECTORY METHOD URL to ask files in place of the running mesh.
    #[arg(value_name = "METHOD URL", required = true)]
    request: Vec<String>,
    #[command(flatten)]
    target: mesh::Target,
    /// The caller's namespace, in which short names are meant, and with /WORKLOAD which workload of it calls.
    #[arg(long, default_value = "default", value_name = "NAMESPACE[/WORKLOAD]")]
    from: String,
    /// A request header, as 'name: value'; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was asked, and the policy that answers it.
pub(crate) struct Found {
    pub(crate) question: Question,
    pub(crate) caller: Caller,
    pub(crate) policy: documents::Policy,
    pub(crate) answer: Answer,
}

impl Asked {
    /// Reads the policy and finds what becomes of the request.
    pub(crate) fn find(&self, colour: ColourChoice) -> Result<Found, Failure> {
        let (directory, method, url) = match self.request.as_slice() {
            [method, url] => (None, method, url),
            [directory, method, url] => (Some(PathBuf::from(directory)), method, url),
            _ => return Err(Failure::Usage("expected [DIRECTORY] METHOD URL".into())),
        };
        if directory.is_some() && self.target.mesh.is_some() {
            return Err(Failure::Usage("give a directory or --mesh, not both".into()));
        }
        let question = question(method, url, &self.headers, &self.from)?;
        let (policy, endpoints) = match &directory {
            Some(directory) => {
                let policy = documents::read(directory)?;
                // A broken document can be the very reason for a surprise: what is wrong is shown first.
                terminal::err(&documents::render(
                    &policy.diagnostics,
                    &mut Sources::default(),
                    Palette::stderr(colour),
                ));
                (policy, Endpoints::default())
            }
            None => {
                let address = self.target.address()?;
                (documents::in_force(&address)?, Endpoints::of(&mesh::status(&address)?))
            }
        };
        let caller = policy.caller(&self.from)?;
        let answer = Answer::find(&policy.snapshot(&caller), &endpoints, &question);
        Ok(Found { question, caller, policy, answer })
    }
}

/// The request in question.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(super) method: Method,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
    /// The caller's namespace.
    pub(super) from: String,
}

/// Runs the verb.
pub(crate) fn run(options: &Options, colour: ColourChoice) -> Result<(), Failure> {
    let Found { question, answer, .. } = options.asked.find(colour)?;
    if options.asked.json {
        terminal::out(&format!("{:#}\n", answer.to_json(&question)));
    } else {
        terminal::out(&answer.to_text(&question, Palette::stdout(colour)));
    }
    if answer.is_forwarded() { Ok(()) } else { Err(Failure::Silent) }
}

fn question(
    method: &str,
    url: &str,
    headers: &[(HeaderName, HeaderValue)],
    from: &str,
) -> Result<Question, Failure> {
    let method: Method = method
        .parse()
        .map_err(|_| Failure::Usage(format!("`{method}` is no method; expected for example GET")))?;
    let bad = |why: &str| {
        Failure::Usage(format!("`{url}` {why}; expected for example http://product:8080/products"))
    };
    // Without a scheme the user means http; curl reads it the same way.
    let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: Uri = full.parse().map_err(|error| bad(&format!("is no URL ({error})")))?;
    let default_port = match uri.scheme_str() {
        Some("http") => 80,
        Some("https") => {
            return Err(bad("would be encrypted by the application: nobody on the way sees its routes"));
        }
        _ => return Err(bad("is not an http URL")),
    };
    let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| bad("has no host"))?;
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        all.append(name.clone(), value.clone());
    }
    if !all.contains_key(http::header::HOST)
        && let Some(authority) = uri.authority()
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        all.insert(http::header::HOST, value);
    }
    Ok(Question {
        method,
        host: host.to_owned(),
        port: uri.port_u16().unwrap_or(default_port),
        path: if uri.path().is_empty() { "/".to_owned() } else { uri.path().to_owned() },
        query: uri.query().map(str::to_owned),
        headers: all,
        from: from.split_once('/').map_or(from, |(namespace, _)| namespace).to_owned(),
    })
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) =
        text.split_once(':').ok_or_else(|| format!("`{text}` has no colon; expected 'name: value'"))?;
    let name = name.trim().parse().map_err(|_| format!("`{name}` is no header name"))?;
    let value = value.trim().parse().map_err(|_| format!("`{value}` is no header value"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let q = question("GET", "http://product.shop:8080/a/b?c=d", &[], "shop").expect("valid");
        assert_eq!((q.host.as_str(), q.port, q.path.as_str()), ("product.shop", 8080, "/a/b"));
        assert_eq!(q.query.as_deref(), Some("c=d"));
        assert_eq!(q.headers["host"], "product.shop:8080");
        let q = question("GET", "product", &[], "shop").expect("valid");
        assert_eq!((q.host.as_str(), q.port, q.path.as_str()), ("product", 80, "/"));
    }

    #[test]
    fn a_host_header_of_the_users_own_stays() {
        let own = header("Host: other").expect("valid");
        let q = question("GET", "http://product/", &[own], "shop").expect("valid");
        assert_eq!(q.headers["host"], "other");
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for (method, url) in [
            ("G E T", "http://a/"),
            ("GET", "https://a/"),
            ("GET", "ftp://a/"),
            ("GET", "http:///x"),
            ("GET", ""),
        ] {
            assert!(matches!(question(method, url, &[], "x"), Err(Failure::Usage(_))), "{method} {url}");
        }
        assert!(header("no colon").is_err() && header("b ad: x").is_err());
    }
}
