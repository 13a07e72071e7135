//! The user service: who buys, and where parcels go.

use crate::{
    fault::Fault,
    serving::{self, Replica},
};
use axum::{Json, Router, extract::Path, routing::get};
use serde::{Deserialize, Serialize};

/// A person with an account.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct User {
    /// Its id.
    pub(crate) id: String,
    /// How the person is called.
    pub(crate) name: String,
    /// Where confirmations go.
    pub(crate) email: String,
    /// Where parcels go.
    pub(crate) address: String,
}

const PEOPLE: [(&str, &str, &str); 6] = [
    ("ada", "Ada Lindqvist", "Kungsgatan 14, Uppsala"),
    ("bram", "Bram de Wit", "Oudegracht 203, Utrecht"),
    ("chiara", "Chiara Fontana", "Via San Vitale 8, Bologna"),
    ("dilan", "Dilan Yıldız", "Moda Caddesi 31, Istanbul"),
    ("emeka", "Emeka Obi", "12 Aminu Street, Lagos"),
    ("freya", "Freya Morgan", "5 Castle Terrace, Cardiff"),
];

/// The ids of all users, for those who need somebody.
pub(crate) fn ids() -> impl ExactSizeIterator<Item = &'static str> {
    PEOPLE.iter().map(|(id, ..)| *id)
}

fn users() -> impl Iterator<Item = User> {
    PEOPLE.iter().map(|(id, name, address)| User {
        id: (*id).to_owned(),
        name: (*name).to_owned(),
        email: format!("{id}@example.org"),
        address: (*address).to_owned(),
    })
}

/// Runs the service.
pub(crate) async fn run(replica: Replica) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/users", get(async || Json(users().collect::<Vec<_>>())))
        .route("/users/{id}", get(one));
    serving::serve(replica, router).await
}

async fn one(Path(id): Path<String>) -> Result<Json<User>, Fault> {
    users().find(|user| user.id == id).map(Json).ok_or_else(|| Fault::not_found("user", &id))
}
