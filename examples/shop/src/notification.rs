//! The notification service: tells people what became of their order. Its outbox can be read.

use crate::{
    fault::Fault,
    serving::{self, Replica},
};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::post,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

/// Messages that are kept; the oldest goes when another one comes.
const MOST: usize = 1000;
const LONGEST: usize = 4096;

/// A message to somebody.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Notification {
    /// Whom it is for: an e-mail address.
    pub(crate) to: String,
    /// The order that it is about.
    pub(crate) order: String,
    /// Its subject.
    pub(crate) subject: String,
    /// What it says.
    pub(crate) text: String,
}

#[derive(Debug, Default)]
struct Outbox(VecDeque<Notification>);

impl Outbox {
    /// Takes a message, once per order and subject: a caller that is unsure may send it again.
    fn take(&mut self, message: Notification) -> Result<(), Fault> {
        if !message.to.contains('@') {
            return Err(Fault::bad_request("`to` has to be an e-mail address"));
        }
        if message.text.len() > LONGEST || message.subject.len() > LONGEST {
            return Err(Fault::bad_request("the message is too long"));
        }
        if self.0.iter().any(|own| own.order == message.order && own.subject == message.subject) {
            return Ok(());
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(message);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Filter {
    order: String,
}

type Shared = State<Arc<Mutex<Outbox>>>;

/// Runs the service.
pub(crate) async fn run(replica: Replica) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/notifications", post(accept).get(about))
        // Its old name, which goes away once nobody uses it any more: `weft status --deprecated` tells.
        .route("/messages", post(accept))
        .with_state(Arc::new(Mutex::new(Outbox::default())));
    serving::serve(replica, router).await
}

async fn accept(State(outbox): Shared, Json(message): Json<Notification>) -> Result<StatusCode, Fault> {
    outbox.lock().unwrap_or_else(PoisonError::into_inner).take(message)?;
    Ok(StatusCode::ACCEPTED)
}

async fn about(State(outbox): Shared, Query(filter): Query<Filter>) -> Json<Vec<Notification>> {
    let outbox = outbox.lock().unwrap_or_else(PoisonError::into_inner);
    Json(outbox.0.iter().filter(|message| message.order == filter.order).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(order: &str) -> Notification {
        let text = String::new();
        Notification { to: "ada@example.org".into(), order: order.into(), subject: "Thanks".into(), text }
    }

    #[test]
    fn the_same_message_goes_out_once() {
        let mut outbox = Outbox::default();
        for order in ["1", "2", "1"] {
            outbox.take(message(order)).expect("taken");
        }
        assert_eq!(outbox.0.len(), 2);
    }

    #[test]
    fn the_outbox_has_a_bound() {
        let mut outbox = Outbox::default();
        for order in 0..MOST + 5 {
            outbox.take(message(&order.to_string())).expect("taken");
        }
        assert_eq!(outbox.0.len(), MOST);
        assert!(outbox.take(Notification { to: "nobody".into(), ..message("x") }).is_err());
    }
}
