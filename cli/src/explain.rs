//! `weft explain`: what will happen to a request, every decision with its value and with who says so.

use crate::{
    exit::Failure,
    routes::{self, Found},
    terminal::{self, ColourChoice, Palette, Style, table},
};
use serde_json::{Value, json};
use weft_config::compile::{Asked, AtBackend, Decision, Explanation, SaidBy};
use weft_config::matching::normalize_path;

/// Show what will happen to a request: its route, and every decision about it with where it comes from.
///
/// Top to bottom as the request meets them: at the caller, for each backend that it can go to, where that is served,
/// and on the answer. What no document says is marked as a default. Without a directory, the policy that is in force in
/// the running mesh is asked.
#[derive(clap::Args, Clone, Debug)]
#[command(
    override_usage = "weft explain [OPTIONS] [DIRECTORY] <METHOD> <URL>",
    after_help = "Examples:
  weft explain --from shop GET http://product:8080/products/7
  weft explain --from shop/cart POST http://orders:8080/orders
  weft explain examples/shop --from shop GET http://product:8080/ -H 'x-canary: 1'

Exit code 1 if the request would not be forwarded anywhere."
)]
pub(crate) struct Options {
    #[command(flatten)]
    asked: routes::Asked,
}

/// Runs the verb.
pub(crate) fn run(options: &Options, colour: ColourChoice) -> Result<(), Failure> {
    let Found { question, caller, policy, answer } = options.asked.find(colour)?;
    let explanation = answer.taken().and_then(|taken| {
        // The route was found by this path, so it has a normal form.
        let path = normalize_path(&question.path).ok()?;
        let asked = Asked { method: &question.method, path: &path, headers: &question.headers };
        let mut told = policy.explain(&caller, taken.service, taken.port, taken.rule, &asked)?;
        if taken.opaque {
            about_connections_only(&mut told);
        }
        Some(told)
    });
    if options.asked.json {
        let mut told = answer.to_json(&question);
        told["decisions"] = explanation.as_ref().map_or(Value::Null, to_json);
        terminal::out(&format!("{told:#}\n"));
    } else {
        let palette = Palette::stdout(colour);
        let mut text = answer.to_text(&question, palette);
        if let Some(explanation) = &explanation {
            text.push_str(&to_text(explanation, palette));
        }
        terminal::out(&text);
    }
    if answer.is_forwarded() { Ok(()) } else { Err(Failure::Silent) }
}

/// Leaves out what is decided about requests, where opaque bytes are carried.
fn about_connections_only(told: &mut Explanation) {
    told.calls.clear();
    told.answer.clear();
    for backend in &mut told.backends {
        backend.served.clear();
        backend.endpoints.retain(|decision| decision.part != "retry budget");
    }
}

fn to_text(told: &Explanation, palette: Palette) -> String {
    let mut text = String::new();
    let mut section = |title: &str, decisions: &[Decision]| {
        if decisions.is_empty() {
            return;
        }
        text.push_str(&format!("\n{}\n", palette.paint(Style::Bold, title)));
        let row = |decision: &Decision| {
            let by = match decision.sources.is_empty() {
                true => "default".to_owned(),
                false => decision.sources.iter().map(source).collect::<Vec<_>>().join(", "),
            };
            // What is decided can be long, so it comes last.
            vec![decision.part.to_owned(), by, decision.value.clone()]
        };
        let mut rows = vec![["DECISION", "FROM", "VALUE"].map(str::to_owned).to_vec()];
        rows.extend(decisions.iter().map(row));
        for line in table(&rows, palette).lines() {
            text.push_str(&format!("  {line}\n"));
        }
    };
    section("at the caller", &told.calls);
    for AtBackend { service, port, endpoints, served } in &told.backends {
        section(&format!("calls to {service}:{port}"), endpoints);
        section(&format!("where {service}:{port} is served"), served);
    }
    section("on the answer", &told.answer);
    text
}

fn source(said: &SaidBy) -> String {
    format!("{} ({}:{})", said.document, said.file, said.line)
}

fn to_json(told: &Explanation) -> Value {
    let decisions = |all: &[Decision]| -> Vec<Value> {
        let each = all.iter().map(|decision| {
            let sources = decision.sources.iter();
            let sources: Vec<Value> = sources
                .map(|said| json!({ "document": said.document, "file": said.file, "line": said.line }))
                .collect();
            json!({ "decision": decision.part, "value": decision.value, "from": sources })
        });
        each.collect()
    };
    let backends: Vec<Value> = told
        .backends
        .iter()
        .map(|at| {
            json!({
                "service": at.service.to_string(), "port": at.port,
                "endpoints": decisions(&at.endpoints), "served": decisions(&at.served),
            })
        })
        .collect();
    json!({ "caller": decisions(&told.calls), "backends": backends, "answer": decisions(&told.answer) })
}
