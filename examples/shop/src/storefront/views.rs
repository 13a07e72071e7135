//! What stands on each page.

use super::{art, page::Text};
use crate::{
    cart::{Cart, MOST_PIECES},
    checkout::Order,
    money::Cents,
    notification::Notification,
    product::{Catalogue, Product, ProductAnswer, Rating},
    user::User,
};
use std::fmt::Write;

/// The front page.
pub(super) fn grid(catalogue: &Catalogue) -> String {
    let cards: String = catalogue.products.iter().map(card).collect();
    format!(
        r#"<section class="hero"><h1>Woven things<br>for every day</h1>
<p>Blankets, scarves, rugs and bags from small looms. This page was put together by {by}.</p></section>
<section class="grid">{cards}</section>"#,
        by = told_by(&catalogue.replica, &catalogue.version),
    )
}

fn told_by(replica: &str, version: &str) -> String {
    let class = if version == "v2" { "version second" } else { "version" };
    format!(r#"<em>{}</em> <span class="{class}">{}</span>"#, Text(replica), Text(version))
}

fn card(product: &Product) -> String {
    format!(
        r#"<a class="card" href="/products/{id}">{art}<span class="name">{name}</span><span class="line"><b>{price}</b>{rating}</span></a>"#,
        id = Text(&product.id),
        art = art::drawing(&product.id, &product.category),
        name = Text(&product.name),
        price = product.price,
        rating = product.rating.map_or(String::new(), stars),
    )
}

fn stars(rating: Rating) -> String {
    let tenths = rating.tenths.min(50);
    format!(
        r#"<span class="stars"><i style="--full:{percent}%" aria-hidden="true">★★★★★</i> {whole}.{tenth} <small>({count})</small></span>"#,
        percent = u32::from(tenths) * 2,
        whole = tenths / 10,
        tenth = tenths % 10,
        count = rating.count,
    )
}

/// One product, with others that are like it.
pub(super) fn product(
    answer: &ProductAnswer,
    left: Option<u32>,
    alike: Result<&[Product], String>,
) -> String {
    let product = &answer.product;
    let stock = match left {
        Some(0) => r#"<span class="stock bad">Sold out until the next delivery</span>"#.to_owned(),
        Some(few @ 1..=9) => format!(r#"<span class="stock few">Only {few} left</span>"#),
        Some(left) => format!(r#"<span class="stock">{left} in stock</span>"#),
        None => r#"<span class="stock few">Stock is not known just now</span>"#.to_owned(),
    };
    let others = match alike {
        Ok([]) => String::new(),
        Ok(products) => {
            let cards: String = products.iter().map(card).collect();
            format!(r#"<h2>You may also like</h2><section class="grid small">{cards}</section>"#)
        }
        Err(outcome) => format!(
            r#"<h2>You may also like</h2><p class="aside">Recommendations are taking a break ({}). Everything else works.</p>"#,
            Text(&outcome)
        ),
    };
    format!(
        r#"<article class="product"><div class="picture">{art}</div><div class="about">
<p class="kind">{kind}</p><h1>{name}</h1>{rating}<p class="lead">{description}</p><p class="price">{price}</p>{stock}
<form method="post" action="/cart"><input type="hidden" name="product" value="{id}">{quantity}
<button{disabled}>Add to cart</button></form>
<p class="told">told by {by}</p></div></article>{others}"#,
        art = art::drawing(&product.id, &product.category),
        kind = Text(&product.category),
        name = Text(&product.name),
        rating = product.rating.map_or(String::new(), stars),
        description = Text(&product.description),
        price = product.price,
        id = Text(&product.id),
        quantity = quantity(1, 1),
        disabled = if left == Some(0) { " disabled" } else { "" },
        by = told_by(&answer.replica, &answer.version),
    )
}

fn quantity(value: u32, least: u32) -> String {
    format!(
        r#"<input class="quantity" type="number" name="quantity" value="{value}" min="{least}" max="{MOST_PIECES}" aria-label="Quantity">"#
    )
}

/// The cart.
pub(super) fn cart(cart: &Cart, products: &[Product]) -> String {
    if cart.lines.is_empty() {
        return format!("<h1>Your cart</h1><p class=\"lead\">It is empty.</p>{}", way_back());
    }
    let mut lines = String::new();
    for line in &cart.lines {
        let product = products.iter().find(|product| product.id == line.product);
        let name = product.map_or(line.product.as_str(), |product| product.name.as_str());
        let category = product.map_or("", |product| product.category.as_str());
        let _ = write!(
            lines,
            r#"<li><a class="thumb" href="/products/{id}">{art}</a><div class="what"><a href="/products/{id}">{name}</a><small>{unit} each</small></div>
<form method="post" action="/cart/lines"><input type="hidden" name="product" value="{id}">{quantity}<button class="quiet">Update</button></form>
<form method="post" action="/cart/lines"><input type="hidden" name="product" value="{id}"><input type="hidden" name="quantity" value="0"><button class="quiet" aria-label="Remove {name}">Remove</button></form>
<b>{sum}</b></li>"#,
            id = Text(&line.product),
            art = art::drawing(&line.product, category),
            name = Text(name),
            unit = line.unit_price,
            quantity = quantity(line.quantity, 0),
            sum = line.unit_price.times(line.quantity),
        );
    }
    format!(
        r#"<h1>Your cart</h1><ul class="lines">{lines}</ul>{total}<p class="actions"><a href="/">Keep looking</a><a class="button" href="/checkout">Check out</a></p>"#,
        total = total(cart.total),
    )
}

fn total(amount: Cents) -> String {
    format!(r#"<p class="total"><span>Total</span><b>{amount}</b></p>"#)
}

/// The last step before an order.
pub(super) fn checkout(cart: &Cart, user: &User) -> String {
    if cart.lines.is_empty() {
        return format!(
            "<h1>Checkout</h1><p class=\"lead\">There is nothing in your cart.</p>{}",
            way_back()
        );
    }
    format!(
        r#"<h1>Checkout</h1><form class="checkout" method="post" action="/checkout">
<section><h2>Ship to</h2><p><b>{name}</b><br>{address}<br><small>{email}</small></p></section>
<fieldset><legend>Pay with</legend>
<label><input type="radio" name="payment" value="card" checked><span><b>Card ending 4242</b><small>Works every time</small></span></label>
<label><input type="radio" name="payment" value="declined-card"><span><b>Card ending 0002</b><small>The bank declines it: see the reservation being undone</small></span></label></fieldset>
{total}<p class="actions"><a href="/cart">Back to the cart</a><button>Place the order</button></p></form>"#,
        name = Text(&user.name),
        address = Text(&user.address),
        email = Text(&user.email),
        total = total(cart.total),
    )
}

/// The order was placed.
pub(super) fn confirmation(order: &Order, message: Option<&Notification>) -> String {
    let lines: String = order
        .lines
        .iter()
        .map(|line| {
            format!(
                r#"<li><div class="what">{quantity} × {name}<small>{unit} each</small></div><b>{sum}</b></li>"#,
                quantity = line.quantity,
                name = Text(&line.name),
                unit = line.unit_price,
                sum = line.unit_price.times(line.quantity),
            )
        })
        .collect();
    let message = match message {
        Some(message) => format!(
            r#"<blockquote><small>To {}: {}</small><p>{}</p></blockquote>"#,
            Text(&message.to),
            Text(&message.subject),
            Text(&message.text)
        ),
        None if order.confirmed => String::new(),
        None => r#"<p class="aside">Your order stands; its confirmation will come later.</p>"#.to_owned(),
    };
    format!(
        r#"<section class="done"><p class="tick" aria-hidden="true">✓</p><h1>Thank you, {name}</h1>
<p class="lead">Order <code>{id}</code> goes to {address}.</p></section>
<ul class="lines plain">{lines}</ul>{total}{message}{back}"#,
        name = Text(&order.name),
        id = Text(&order.id),
        address = Text(&order.address),
        total = total(order.total),
        back = way_back(),
    )
}

/// A way on from a page that is an end.
pub(super) fn way_back() -> String {
    r#"<p class="actions"><a class="button" href="/">To the shelves</a></p>"#.to_owned()
}
