//! Checkout against services that fail at any step.

use super::*;
use crate::cart::CartLine;
use std::sync::Mutex;

/// Services in memory; the step of that name fails.
struct Fake {
    fails: &'static str,
    with: CallError,
    lines: Vec<CartLine>,
    done: Mutex<Vec<&'static str>>,
}

impl Fake {
    fn new(fails: &'static str) -> Self {
        let lines = vec![
            CartLine { product: "rug".into(), quantity: 2, unit_price: Cents(1) },
            CartLine { product: "scarf".into(), quantity: 1, unit_price: Cents(1) },
        ];
        let with = CallError::TimedOut { service: "somebody" };
        Self { fails, with, lines, done: Mutex::default() }
    }

    fn step(&self, name: &'static str) -> Result<(), CallError> {
        self.done.lock().expect("no panic").push(name);
        if name == self.fails { Err(self.with.clone()) } else { Ok(()) }
    }

    fn done(&self) -> Vec<&'static str> {
        self.done.lock().expect("no panic").clone()
    }
}

impl Services for Fake {
    async fn cart(&self, _: &str) -> Result<Cart, CallError> {
        self.step("cart")?;
        Ok(Cart { lines: self.lines.clone(), total: Cents(3) })
    }

    async fn empty_cart(&self, _: &str) -> Result<(), CallError> {
        self.step("empty")
    }

    async fn user(&self, id: &str) -> Result<User, CallError> {
        self.step("user")?;
        let (name, email, address) = ("Ada".into(), "ada@example.org".into(), "Uppsala".into());
        Ok(User { id: id.to_owned(), name, email, address })
    }

    async fn products(&self, ids: &[&str]) -> Result<Vec<Product>, CallError> {
        self.step("products")?;
        let product = |id: &&str| Product {
            id: (*id).to_owned(),
            name: (*id).to_uppercase(),
            category: String::new(),
            description: String::new(),
            price: Cents(1000),
            rating: None,
        };
        Ok(ids.iter().map(product).collect())
    }

    async fn reserve(&self, _: &str, _: Vec<(String, u32)>) -> Result<(), CallError> {
        self.step("reserve")
    }

    async fn commit(&self, _: &str) -> Result<(), CallError> {
        self.step("commit")
    }

    async fn release(&self, _: &str) -> Result<(), CallError> {
        self.step("release")
    }

    async fn notify(&self, _: Notification) -> Result<(), CallError> {
        self.step("notify")
    }
}

async fn order(services: &Fake, payment: Payment) -> Result<Order, Failure> {
    let wanted = OrderRequest { cart: "c".into(), user: "ada".into(), payment };
    place(services, "1".into(), wanted).await
}

#[tokio::test]
async fn an_order_is_charged_at_todays_prices_and_empties_the_cart() {
    let services = Fake::new("nothing");
    let order = order(&services, Payment::Card).await.expect("placed");
    assert_eq!(order.total, Cents(3000));
    assert!(order.confirmed);
    assert_eq!(services.done(), ["cart", "user", "products", "reserve", "commit", "empty", "notify"]);
}

#[tokio::test]
async fn a_declined_card_frees_the_goods_and_keeps_the_cart() {
    let services = Fake::new("nothing");
    let failure = order(&services, Payment::DeclinedCard).await.expect_err("declined");
    assert!(matches!(failure, Failure::Declined));
    assert_eq!(services.done(), ["cart", "user", "products", "reserve", "release"]);
}

#[tokio::test]
async fn whatever_fails_around_the_reservation_frees_the_goods() {
    for step in ["reserve", "commit"] {
        let services = Fake::new(step);
        order(&services, Payment::Card).await.expect_err("failed");
        let done = services.done();
        assert_eq!(done.last(), Some(&"release"), "{step}: {done:?}");
        assert!(!done.contains(&"empty") && !done.contains(&"notify"));
    }
}

#[tokio::test]
async fn what_fails_before_the_reservation_leaves_nothing_to_undo() {
    for step in ["cart", "user", "products"] {
        let services = Fake::new(step);
        order(&services, Payment::Card).await.expect_err("failed");
        assert!(!services.done().contains(&"reserve") && !services.done().contains(&"release"));
    }
}

#[tokio::test]
async fn sold_out_is_told_and_needs_no_release() {
    let message = "only 1 left of rug".to_owned();
    let sold_out = CallError::Refused { service: "inventory", status: StatusCode::CONFLICT, message };
    let services = Fake { with: sold_out, ..Fake::new("reserve") };
    let failure = order(&services, Payment::Card).await.expect_err("sold out");
    assert!(matches!(failure, Failure::SoldOut(message) if message == "only 1 left of rug"));
    assert!(!services.done().contains(&"release"));
}

#[tokio::test]
async fn a_failed_courtesy_does_not_take_the_order_back() {
    let order_of = async |step| order(&Fake::new(step), Payment::Card).await.expect("placed");
    assert!(!order_of("notify").await.confirmed);
    assert!(order_of("empty").await.confirmed);
}

#[tokio::test]
async fn an_empty_cart_is_no_order() {
    let services = Fake { lines: Vec::new(), ..Fake::new("nothing") };
    assert!(matches!(order(&services, Payment::Card).await, Err(Failure::EmptyCart)));
}
