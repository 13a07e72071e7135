//! The office behind the shop, where prices are changed. In this shop the door stands open.

use super::{Notice, Shop, form, is_id, page::Text, unreadable_form, visit::Visit};
use crate::{
    client::CallError,
    money::Cents,
    product::{Catalogue, NewPrice, Product, ProductAnswer},
};
use axum::{
    body::Bytes,
    extract::{Query, State},
    http::{Method, StatusCode},
    response::Response,
};
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Changed {
    changed: Option<String>,
}

#[derive(Deserialize)]
struct PriceForm {
    product: String,
    price: String,
}

/// The price list, as it is now.
pub(super) async fn show(State(shop): State<Shop>, Query(query): Query<Changed>, visit: Visit) -> Response {
    let catalogue: Result<Catalogue, CallError> =
        shop.client.get_now(&visit.context, "product", "/products").await;
    match catalogue {
        Ok(catalogue) => {
            let page = shop.page(&visit, "The office", None);
            let changed = query.changed.as_deref();
            let changed = catalogue.products.iter().find(|product| Some(product.id.as_str()) == changed);
            let page = changed.map(notice).into_iter().fold(page, super::Page::notice);
            page.render(StatusCode::OK, &list(&catalogue.products))
        }
        Err(error) => shop.trouble(&visit, None, "The price list cannot be shown", &error),
    }
}

fn notice(product: &Product) -> Notice {
    let title = format!("{} is {} now", product.name, product.price);
    let text = "The change went by the sidecar beside this shop, which dropped the catalogue and the page of the \
                product: both are right at once. Another copy of the shop shows the old price for half a minute at \
                most, or until the tag is purged.";
    Notice::done(&title, text)
}

/// Changes one price.
pub(super) async fn change(State(shop): State<Shop>, visit: Visit, body: Bytes) -> Response {
    let form = form::<PriceForm>(&body).filter(|form| is_id(&form.product));
    let wanted = form
        .and_then(|form| Some(NewPrice { price: form.price.parse::<Cents>().ok()?, product: form.product }));
    let Some(wanted) = wanted else { return unreadable_form(&shop, &visit) };
    let changed: Result<ProductAnswer, CallError> =
        shop.client.json(&visit.context, Method::POST, "product", "/products", Some(&wanted)).await;
    match changed {
        Ok(answer) => visit.redirect(&format!("/office?changed={}", answer.product.id)),
        Err(error) => shop.trouble(&visit, None, "The price was not changed", &error),
    }
}

fn list(products: &[Product]) -> String {
    let rows: String = products.iter().map(row).collect();
    format!(
        r#"<h1>The office</h1><p class="lead">What is kept of the shelves may be half a minute old; the till always asks. Change a price, and look at the foot of the next page.</p>
<ul class="lines office">{rows}</ul>"#
    )
}

fn row(product: &Product) -> String {
    format!(
        r#"<li><div class="what"><a href="/products/{id}">{name}</a><small>tag <code>product-{id}</code></small></div>
<form method="post" action="/office"><input type="hidden" name="product" value="{id}"><input class="quantity price-of" name="price" value="{price}" inputmode="decimal" aria-label="Price of {name}"><button class="quiet">Change</button></form></li>"#,
        id = Text(&product.id),
        name = Text(&product.name),
        price = product.price.plain(),
    )
}
