//! The services that checkout needs, called through the mesh.

use super::order::Services;
use crate::{
    cart::Cart,
    client::{CallError, Client},
    inventory::Warehouse,
    notification::Notification,
    product::{Catalogue, Product},
    request::RequestContext,
    user::User,
};
use http::Method;

/// The other services, on behalf of one request.
pub(super) struct Mesh<'a> {
    client: &'a Client,
    warehouse: &'a Warehouse,
    context: &'a RequestContext,
}

impl<'a> Mesh<'a> {
    pub(super) fn new(client: &'a Client, warehouse: &'a Warehouse, context: &'a RequestContext) -> Self {
        Self { client, warehouse, context }
    }
}

impl Services for Mesh<'_> {
    async fn cart(&self, id: &str) -> Result<Cart, CallError> {
        self.client.get(self.context, "cart", &format!("/carts/{id}")).await
    }

    async fn empty_cart(&self, id: &str) -> Result<(), CallError> {
        let path = format!("/carts/{id}");
        self.client.json(self.context, Method::DELETE, "cart", &path, None::<&()>).await
    }

    async fn user(&self, id: &str) -> Result<User, CallError> {
        self.client.get(self.context, "user", &format!("/users/{id}")).await
    }

    async fn products(&self, ids: &[&str]) -> Result<Vec<Product>, CallError> {
        let path = format!("/products?ids={}", ids.join(","));
        // What is charged is what it costs now, not what it cost half a minute ago.
        let catalogue: Catalogue = self.client.get_now(self.context, "product", &path).await?;
        Ok(catalogue.products)
    }

    async fn reserve(&self, order: &str, lines: Vec<(String, u32)>) -> Result<(), CallError> {
        self.warehouse.reserve(self.context, order, lines.into_iter()).await
    }

    async fn commit(&self, order: &str) -> Result<(), CallError> {
        self.warehouse.commit(self.context, order).await
    }

    async fn release(&self, order: &str) -> Result<(), CallError> {
        self.warehouse.release(self.context, order).await
    }

    async fn notify(&self, message: Notification) -> Result<(), CallError> {
        self.client.json(self.context, Method::POST, "notification", "/messages", Some(&message)).await
    }
}
