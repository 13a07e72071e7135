//! The storefront: the pages that people click through. It owns nothing; every page asks the other services.

mod art;
mod footer;
mod office;
mod page;
mod views;
mod visit;

use crate::{
    cart::{Cart, CartLine, Quantity},
    checkout::{Order, OrderRequest, Payment},
    client::{CallError, Client},
    inventory::Warehouse,
    notification::Notification,
    product::{Catalogue, Product, ProductAnswer},
    serving::{self, Replica},
    user::User,
};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use page::{Notice, Page};
use serde::{Deserialize, de::DeserializeOwned};
use visit::Visit;

/// The longest form that is read.
const LONGEST_FORM: usize = 4096;

#[derive(Clone)]
struct Shop {
    replica: Replica,
    client: Client,
    warehouse: Warehouse,
}

/// Runs the service.
pub(crate) async fn run(replica: Replica) -> anyhow::Result<()> {
    let client = Client::from_env()?;
    let warehouse = Warehouse::new(&client)?;
    let router = Router::new()
        .route("/", get(home))
        .route("/products/{id}", get(product))
        .route("/cart", get(cart).post(add_to_cart))
        .route("/cart/lines", post(change_cart))
        .route("/checkout", get(checkout).post(place_order))
        .route("/orders/{id}", get(order))
        .route("/preview", get(preview))
        .route("/office", get(office::show).post(office::change))
        .route("/favicon.svg", get(favicon))
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(LONGEST_FORM))
        .with_state(Shop { replica: replica.clone(), client, warehouse });
    serving::serve(replica, router).await
}

impl Shop {
    async fn cart(&self, visit: &Visit) -> Result<Cart, CallError> {
        self.client.get(&visit.context, "cart", &format!("/carts/{}", visit.session)).await
    }

    async fn catalogue(&self, visit: &Visit) -> Result<Catalogue, CallError> {
        self.client.get(&visit.context, "product", "/products").await
    }

    async fn user(&self, visit: &Visit) -> Result<User, CallError> {
        self.client.get(&visit.context, "user", &format!("/users/{}", visit.user())).await
    }

    fn page<'a>(&'a self, visit: &'a Visit, title: &'a str, cart: Option<&Cart>) -> Page<'a> {
        Page::new(visit, &self.replica, title, cart.map(Cart::pieces), self.client.caches())
    }

    /// The page that says what went wrong, for a person.
    fn trouble(&self, visit: &Visit, cart: Option<&Cart>, what: &str, error: &CallError) -> Response {
        let status = match error {
            CallError::Refused { status: StatusCode::NOT_FOUND, .. } => StatusCode::NOT_FOUND,
            // That the storefront itself may not call somebody is no fault of the visitor.
            CallError::Refused { status, .. }
                if status.is_client_error() && *status != StatusCode::FORBIDDEN =>
            {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            CallError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        let notice = Notice::trouble(what, &error.to_string());
        self.page(visit, what, cart).notice(notice).render(status, &views::way_back())
    }
}

async fn home(State(shop): State<Shop>, visit: Visit) -> Response {
    let (catalogue, cart) = tokio::join!(shop.catalogue(&visit), shop.cart(&visit));
    let cart = cart.ok();
    match catalogue {
        Ok(catalogue) => {
            let body = views::grid(&catalogue);
            shop.page(&visit, "Woven things for every day", cart.as_ref()).render(StatusCode::OK, &body)
        }
        Err(error) => shop.trouble(&visit, cart.as_ref(), "The shelves cannot be shown", &error),
    }
}

async fn product(State(shop): State<Shop>, Path(id): Path<String>, visit: Visit) -> Response {
    if !is_id(&id) {
        return nothing_here(State(shop), visit).await;
    }
    let path = format!("/products/{id}");
    let alike = format!("/recommendations?product={id}");
    let (product, alike, catalogue, stock, cart) = tokio::join!(
        shop.client.get::<ProductAnswer>(&visit.context, "product", &path),
        shop.client.get::<Vec<String>>(&visit.context, "recommendation", &alike),
        shop.catalogue(&visit),
        shop.warehouse.available(&visit.context, vec![id.clone()]),
        shop.cart(&visit),
    );
    let cart = cart.ok();
    match product {
        Ok(answer) => {
            // Neither recommendations nor stock are worth a broken page.
            let left = stock.ok().and_then(|stock| stock.get(&id).copied());
            let alike = alike.and_then(|ids| Ok(chosen(&ids, catalogue?.products)));
            let body = views::product(&answer, left, alike.as_deref().map_err(CallError::outcome));
            shop.page(&visit, &answer.product.name, cart.as_ref()).render(StatusCode::OK, &body)
        }
        Err(error) => shop.trouble(&visit, cart.as_ref(), "This product cannot be shown", &error),
    }
}

/// The products with these ids, in this order.
fn chosen(ids: &[String], mut products: Vec<Product>) -> Vec<Product> {
    let mut take = |id: &String| {
        let at = products.iter().position(|product| product.id == *id)?;
        Some(products.swap_remove(at))
    };
    ids.iter().filter_map(&mut take).collect()
}

async fn cart(State(shop): State<Shop>, visit: Visit) -> Response {
    let (cart, catalogue) = tokio::join!(shop.cart(&visit), shop.catalogue(&visit));
    match cart {
        Ok(cart) => {
            let products = catalogue.map(|catalogue| catalogue.products).unwrap_or_default();
            let body = views::cart(&cart, &products);
            shop.page(&visit, "Your cart", Some(&cart)).render(StatusCode::OK, &body)
        }
        Err(error) => shop.trouble(&visit, None, "Your cart cannot be shown", &error),
    }
}

#[derive(Deserialize)]
struct LineForm {
    product: String,
    quantity: u32,
}

async fn add_to_cart(State(shop): State<Shop>, visit: Visit, body: Bytes) -> Response {
    let Some(form) = form::<LineForm>(&body).filter(|form| is_id(&form.product)) else {
        return unreadable_form(&shop, &visit);
    };
    // The price is the product service's to say, not the browser's, and now, not when the shelves were last looked at.
    let path = format!("/products/{}", form.product);
    let answer: Result<ProductAnswer, _> = shop.client.get_now(&visit.context, "product", &path).await;
    let added = match answer {
        Ok(answer) => {
            let line =
                CartLine { product: form.product, quantity: form.quantity, unit_price: answer.product.price };
            let path = format!("/carts/{}/lines", visit.session);
            shop.client.json::<Cart>(&visit.context, Method::POST, "cart", &path, Some(&line)).await
        }
        Err(error) => Err(error),
    };
    match added {
        Ok(_) => visit.redirect("/cart"),
        Err(error) => shop.trouble(&visit, None, "This cannot be put into your cart", &error),
    }
}

async fn change_cart(State(shop): State<Shop>, visit: Visit, body: Bytes) -> Response {
    let Some(form) = form::<LineForm>(&body).filter(|form| is_id(&form.product)) else {
        return unreadable_form(&shop, &visit);
    };
    let path = format!("/carts/{}/lines/{}", visit.session, form.product);
    let wanted = Quantity { quantity: form.quantity };
    match shop.client.json::<Cart>(&visit.context, Method::PUT, "cart", &path, Some(&wanted)).await {
        Ok(_) => visit.redirect("/cart"),
        Err(error) => shop.trouble(&visit, None, "Your cart cannot be changed", &error),
    }
}

async fn checkout(State(shop): State<Shop>, visit: Visit) -> Response {
    checkout_page(&shop, &visit, None, StatusCode::OK).await
}

async fn checkout_page(shop: &Shop, visit: &Visit, notice: Option<Notice>, status: StatusCode) -> Response {
    let (cart, user) = tokio::join!(shop.cart(visit), shop.user(visit));
    match (cart, user) {
        (Ok(cart), Ok(user)) => {
            let page = shop.page(visit, "Checkout", Some(&cart));
            let page = notice.into_iter().fold(page, Page::notice);
            page.render(status, &views::checkout(&cart, &user))
        }
        (Err(error), _) | (_, Err(error)) => shop.trouble(visit, None, "You cannot check out now", &error),
    }
}

#[derive(Deserialize)]
struct CheckoutForm {
    payment: Payment,
}

async fn place_order(State(shop): State<Shop>, visit: Visit, body: Bytes) -> Response {
    let Some(form) = form::<CheckoutForm>(&body) else {
        return unreadable_form(&shop, &visit);
    };
    let wanted =
        OrderRequest { cart: visit.session.clone(), user: visit.user().to_owned(), payment: form.payment };
    let placed: Result<Order, _> =
        shop.client.json(&visit.context, Method::POST, "checkout", "/orders", Some(&wanted)).await;
    match placed {
        Ok(order) => visit.redirect(&format!("/orders/{}", order.id)),
        Err(CallError::Refused { status, message, .. }) if status.is_client_error() => {
            let notice = Notice::trouble("Your order was not placed", &message);
            checkout_page(&shop, &visit, Some(notice), status).await
        }
        Err(error) => shop.trouble(&visit, None, "Your order was not placed", &error),
    }
}

async fn order(State(shop): State<Shop>, Path(id): Path<String>, visit: Visit) -> Response {
    if !is_id(&id) {
        return nothing_here(State(shop), visit).await;
    }
    let order = format!("/orders/{id}");
    let about = format!("/notifications?order={id}");
    let (order, messages, cart) = tokio::join!(
        shop.client.get::<Order>(&visit.context, "checkout", &order),
        shop.client.get::<Vec<Notification>>(&visit.context, "notification", &about),
        shop.cart(&visit),
    );
    let cart = cart.ok();
    match order {
        Ok(order) => {
            let body = views::confirmation(&order, messages.unwrap_or_default().first());
            shop.page(&visit, "Thank you", cart.as_ref()).render(StatusCode::OK, &body)
        }
        Err(error) => shop.trouble(&visit, cart.as_ref(), "This order cannot be shown", &error),
    }
}

#[derive(Deserialize)]
struct PreviewQuery {
    version: Option<String>,
}

async fn preview(Query(query): Query<PreviewQuery>, visit: Visit) -> Response {
    visit.redirect_with_preview(query.version.as_deref() == Some("v2"))
}

async fn favicon() -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("image/svg+xml")),
        (header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600")),
    ];
    (headers, page::MARK).into_response()
}

async fn nothing_here(State(shop): State<Shop>, visit: Visit) -> Response {
    let notice = Notice::trouble("There is nothing here", "The address may have a slip in it.");
    shop.page(&visit, "Not found", None).notice(notice).render(StatusCode::NOT_FOUND, &views::way_back())
}

fn unreadable_form(shop: &Shop, visit: &Visit) -> Response {
    let notice = Notice::trouble("That form cannot be read", "Go back, and send it again.");
    shop.page(visit, "Bad request", None).notice(notice).render(StatusCode::BAD_REQUEST, &views::way_back())
}

/// Reads a form. What a browser sends for one is written as a query is.
fn form<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(body).ok()?;
    let uri: Uri = format!("/?{text}").parse().ok()?;
    Query::<T>::try_from_uri(&uri).ok().map(|Query(form)| form)
}

/// True for what can be an id here, so that nothing else becomes part of a path.
fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_and_nonsense_is_not() {
        let line = form::<LineForm>(b"product=dune-rug&quantity=2").expect("a form");
        assert_eq!((line.product.as_str(), line.quantity), ("dune-rug", 2));
        assert!(form::<LineForm>(b"product=dune-rug&quantity=-1").is_none());
        assert!(form::<LineForm>(b"\xff\xfe").is_none());
        assert_eq!(
            form::<CheckoutForm>(b"payment=declined-card").map(|f| f.payment),
            Some(Payment::DeclinedCard)
        );
    }

    #[test]
    fn an_id_cannot_leave_its_place_in_a_path() {
        assert!(is_id("dune-rug"));
        for bad in ["", "../carts", "a/b", "a b", "A", "a?b", &"a".repeat(65)] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
