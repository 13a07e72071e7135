//! One order from cart to confirmation, and how it is undone when a step fails.

use crate::{
    cart::Cart, client::CallError, fault::Fault, money::Cents, notification::Notification, product::Product,
    user::User,
};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

/// What somebody wants to buy.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct OrderRequest {
    /// The cart's id.
    pub(crate) cart: String,
    /// Who buys.
    pub(crate) user: String,
    /// How it is paid.
    pub(crate) payment: Payment,
}

/// How an order is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Payment {
    /// A card that works.
    Card,
    /// A card that the bank declines, to see how an order is undone.
    DeclinedCard,
}

/// An order that was placed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Order {
    /// Its id.
    pub(crate) id: String,
    /// The buyer's name.
    pub(crate) name: String,
    /// Where the parcel goes.
    pub(crate) address: String,
    /// What was bought.
    pub(crate) lines: Vec<OrderLine>,
    /// What it costs.
    pub(crate) total: Cents,
    /// Whether the confirmation is on its way.
    pub(crate) confirmed: bool,
}

/// Some pieces of one product, at the price that was paid.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct OrderLine {
    /// The product's id.
    pub(crate) product: String,
    /// What it is called.
    pub(crate) name: String,
    /// How many.
    pub(crate) quantity: u32,
    /// The price of one.
    pub(crate) unit_price: Cents,
}

/// Why there is no order.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    EmptyCart,
    Gone(String),
    SoldOut(String),
    Declined,
    Call(CallError),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::EmptyCart => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the cart is empty"),
            Failure::Gone(product) => Self::new(
                StatusCode::CONFLICT,
                format!("{product} is no longer sold; take it out of the cart"),
            ),
            Failure::SoldOut(message) => Self::new(StatusCode::CONFLICT, message),
            Failure::Declined => Self::new(
                StatusCode::PAYMENT_REQUIRED,
                "the bank declined the card; nothing was charged and the goods are free again",
            ),
            Failure::Call(error) => error.into(),
        }
    }
}

/// What checkout needs of others.
pub(super) trait Services: Sync {
    fn cart(&self, id: &str) -> impl Future<Output = Result<Cart, CallError>> + Send;
    fn empty_cart(&self, id: &str) -> impl Future<Output = Result<(), CallError>> + Send;
    fn user(&self, id: &str) -> impl Future<Output = Result<User, CallError>> + Send;
    fn products(&self, ids: &[&str]) -> impl Future<Output = Result<Vec<Product>, CallError>> + Send;
    fn reserve(
        &self,
        order: &str,
        lines: Vec<(String, u32)>,
    ) -> impl Future<Output = Result<(), CallError>> + Send;
    fn commit(&self, order: &str) -> impl Future<Output = Result<(), CallError>> + Send;
    fn release(&self, order: &str) -> impl Future<Output = Result<(), CallError>> + Send;
    fn notify(&self, message: Notification) -> impl Future<Output = Result<(), CallError>> + Send;
}

/// Places an order. Whatever fails after goods were reserved, they are released again.
pub(super) async fn place(
    services: &impl Services,
    id: String,
    wanted: OrderRequest,
) -> Result<Order, Failure> {
    let cart = services.cart(&wanted.cart).await?;
    if cart.lines.is_empty() {
        return Err(Failure::EmptyCart);
    }
    let user = services.user(&wanted.user).await?;
    let lines = priced(services, &cart).await?;
    let total = lines.iter().map(|line| line.unit_price.times(line.quantity)).sum();

    let goods = lines.iter().map(|line| (line.product.clone(), line.quantity)).collect();
    if let Err(error) = services.reserve(&id, goods).await {
        return Err(match error {
            CallError::Refused { status: StatusCode::CONFLICT, message, .. } => Failure::SoldOut(message),
            // No answer does not mean that nothing was reserved.
            error => undone(services, &id, error.into()).await,
        });
    }
    if wanted.payment == Payment::DeclinedCard {
        return Err(undone(services, &id, Failure::Declined).await);
    }
    if let Err(error) = services.commit(&id).await {
        return Err(undone(services, &id, error.into()).await);
    }

    // The order stands. What is left is a courtesy, and its failure is no reason to take the order back.
    if let Err(error) = services.empty_cart(&wanted.cart).await {
        tracing::warn!("order {id} is placed, but its cart stays full: {error}");
    }
    let message = Notification {
        to: user.email,
        order: id.clone(),
        subject: "Thank you for your order".to_owned(),
        text: format!("Hello {}, order {id} over {total} is on its way to {}.", user.name, user.address),
    };
    let confirmed = match services.notify(message).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!("order {id} is placed, but its confirmation is not: {error}");
            false
        }
    };
    Ok(Order { id, name: user.name, address: user.address, lines, total, confirmed })
}

/// The cart's lines at today's prices.
async fn priced(services: &impl Services, cart: &Cart) -> Result<Vec<OrderLine>, Failure> {
    let ids: Vec<&str> = cart.lines.iter().map(|line| line.product.as_str()).collect();
    let products = services.products(&ids).await?;
    cart.lines
        .iter()
        .map(|line| {
            let product = products.iter().find(|product| product.id == line.product);
            let product = product.ok_or_else(|| Failure::Gone(line.product.clone()))?;
            Ok(OrderLine {
                product: line.product.clone(),
                name: product.name.clone(),
                quantity: line.quantity,
                unit_price: product.price,
            })
        })
        .collect()
}

/// Frees the goods of an order that failed. If even that fails, the reservation expires by itself.
async fn undone(services: &impl Services, id: &str, failure: Failure) -> Failure {
    if let Err(error) = services.release(id).await {
        tracing::warn!("the goods of order {id} stay reserved for a minute: {error}");
    }
    failure
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
