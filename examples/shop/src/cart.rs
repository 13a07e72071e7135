//! The cart service: what somebody is about to buy.

use crate::{
    fault::Fault,
    money::Cents,
    serving::{self, Replica},
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post, put},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

/// The most pieces of one product in a cart.
pub(crate) const MOST_PIECES: u32 = 20;
/// The most different products in a cart.
const MOST_LINES: usize = 40;
/// Carts that are kept; the oldest goes when another one comes.
const MOST_CARTS: usize = 10_000;
const LONGEST_ID: usize = 64;

/// What is in one cart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Cart {
    /// One line per product.
    pub(crate) lines: Vec<CartLine>,
    /// The sum at the prices that were shown; what counts is the price at checkout.
    #[serde(default)]
    pub(crate) total: Cents,
}

/// Some pieces of one product.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct CartLine {
    /// The product's id.
    pub(crate) product: String,
    /// How many.
    pub(crate) quantity: u32,
    /// The price of one when it was put in.
    pub(crate) unit_price: Cents,
}

/// How many pieces a line is to have.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Quantity {
    /// How many; none takes the line away.
    pub(crate) quantity: u32,
}

impl Cart {
    /// Puts pieces in, beside those of the same product that are there. The newest price counts.
    fn add(&mut self, line: CartLine) -> Result<(), Fault> {
        if line.product.is_empty() || line.product.len() > LONGEST_ID {
            return Err(Fault::bad_request("`product` has to be the id of a product"));
        }
        if line.quantity == 0 {
            return Err(Fault::bad_request("`quantity` has to be at least 1"));
        }
        let here = self.lines.iter().position(|own| own.product == line.product);
        let before = here.map_or(0, |at| self.lines[at].quantity);
        let quantity = before.saturating_add(line.quantity);
        if quantity > MOST_PIECES {
            return Err(too_many());
        }
        match here {
            Some(at) => self.lines[at] = CartLine { quantity, ..line },
            None if self.lines.len() == MOST_LINES => {
                return Err(Fault::new(StatusCode::UNPROCESSABLE_ENTITY, "the cart is full"));
            }
            None => self.lines.push(line),
        }
        self.add_up();
        Ok(())
    }

    /// Sets how many pieces of a product there are; none takes it away.
    fn set(&mut self, product: &str, quantity: u32) -> Result<(), Fault> {
        if quantity > MOST_PIECES {
            return Err(too_many());
        }
        let line = self.lines.iter_mut().find(|line| line.product == product);
        let line = line.ok_or_else(|| Fault::not_found("line for product", product))?;
        line.quantity = quantity;
        self.lines.retain(|line| line.quantity > 0);
        self.add_up();
        Ok(())
    }

    fn add_up(&mut self) {
        self.total = self.lines.iter().map(|line| line.unit_price.times(line.quantity)).sum();
    }

    /// All pieces of all products.
    pub(crate) fn pieces(&self) -> u32 {
        self.lines.iter().map(|line| line.quantity).sum()
    }
}

fn too_many() -> Fault {
    Fault::new(StatusCode::UNPROCESSABLE_ENTITY, format!("at most {MOST_PIECES} pieces of a product"))
}

/// All carts, by id.
#[derive(Debug, Default)]
struct Carts {
    by_id: HashMap<String, Cart>,
    oldest_first: VecDeque<String>,
}

impl Carts {
    fn at(&mut self, id: &str) -> &mut Cart {
        if !self.by_id.contains_key(id) {
            if self.oldest_first.len() == MOST_CARTS
                && let Some(oldest) = self.oldest_first.pop_front()
            {
                self.by_id.remove(&oldest);
            }
            self.oldest_first.push_back(id.to_owned());
        }
        self.by_id.entry(id.to_owned()).or_default()
    }
}

type Shared = State<Arc<Mutex<Carts>>>;

/// Runs the service.
pub(crate) async fn run(replica: Replica) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/carts/{id}", get(show).delete(clear))
        .route("/carts/{id}/lines", post(add))
        .route("/carts/{id}/lines/{product}", put(set))
        .with_state(Arc::new(Mutex::new(Carts::default())));
    serving::serve(replica, router).await
}

async fn show(State(carts): Shared, Path(id): Path<String>) -> Json<Cart> {
    let carts = carts.lock().unwrap_or_else(PoisonError::into_inner);
    Json(carts.by_id.get(&id).cloned().unwrap_or_default())
}

async fn clear(State(carts): Shared, Path(id): Path<String>) -> StatusCode {
    let mut carts = carts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cart) = carts.by_id.get_mut(&id) {
        *cart = Cart::default();
    }
    StatusCode::NO_CONTENT
}

async fn add(
    State(carts): Shared,
    Path(id): Path<String>,
    Json(line): Json<CartLine>,
) -> Result<Json<Cart>, Fault> {
    if id.len() > LONGEST_ID {
        return Err(Fault::bad_request("that is no cart's id"));
    }
    let mut carts = carts.lock().unwrap_or_else(PoisonError::into_inner);
    let cart = carts.at(&id);
    cart.add(line)?;
    Ok(Json(cart.clone()))
}

async fn set(
    State(carts): Shared,
    Path((id, product)): Path<(String, String)>,
    Json(wanted): Json<Quantity>,
) -> Result<Json<Cart>, Fault> {
    let mut carts = carts.lock().unwrap_or_else(PoisonError::into_inner);
    let cart = carts.by_id.get_mut(&id).ok_or_else(|| Fault::not_found("cart", &id))?;
    cart.set(&product, wanted.quantity)?;
    Ok(Json(cart.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(product: &str, quantity: u32, cents: u64) -> CartLine {
        CartLine { product: product.to_owned(), quantity, unit_price: Cents(cents) }
    }

    #[test]
    fn the_total_follows_every_change() {
        let mut cart = Cart::default();
        cart.add(line("rug", 2, 24_900)).expect("added");
        cart.add(line("scarf", 1, 5_400)).expect("added");
        assert_eq!(cart.total, Cents(55_200));
        cart.set("rug", 1).expect("set");
        assert_eq!(cart.total, Cents(30_300));
        cart.set("scarf", 0).expect("taken away");
        assert_eq!((cart.total, cart.lines.len()), (Cents(24_900), 1));
    }

    #[test]
    fn the_same_product_is_one_line_at_its_newest_price() {
        let mut cart = Cart::default();
        cart.add(line("rug", 1, 100)).expect("added");
        cart.add(line("rug", 2, 90)).expect("added");
        assert_eq!(cart.lines, [line("rug", 3, 90)]);
        assert_eq!(cart.total, Cents(270));
    }

    #[test]
    fn a_cart_has_a_bound_and_a_refused_line_changes_nothing() {
        let mut cart = Cart::default();
        cart.add(line("rug", MOST_PIECES, 1)).expect("added");
        let before = cart.clone();
        assert!(cart.add(line("rug", 1, 1)).is_err());
        assert!(cart.add(line("rug", u32::MAX, 1)).is_err());
        assert!(cart.add(line("scarf", 0, 1)).is_err());
        assert!(cart.set("rug", MOST_PIECES + 1).is_err());
        assert!(cart.set("scarf", 1).is_err());
        assert_eq!(cart, before);
        for n in 1..MOST_LINES {
            cart.add(line(&format!("p{n}"), 1, 1)).expect("added");
        }
        assert!(cart.add(line("one-more", 1, 1)).is_err());
    }

    #[test]
    fn the_oldest_cart_makes_room() {
        let mut carts = Carts::default();
        for n in 0..=MOST_CARTS {
            carts.at(&n.to_string());
        }
        assert_eq!(carts.by_id.len(), MOST_CARTS);
        assert!(!carts.by_id.contains_key("0") && carts.by_id.contains_key("1"));
    }
}
