//! The recommendation service: what else somebody may like. Slow at times, as such services are.

use crate::{
    client::Client,
    fault::Fault,
    kept::Kept,
    product::{Catalogue, Product},
    request::RequestContext,
    serving::{self, Replica},
};
use axum::{
    Router,
    extract::{Query, State},
    http::HeaderMap,
    response::Response,
    routing::get,
};
use serde::Deserialize;
use std::time::Duration;

/// How many there are at most.
const MOST: usize = 4;
/// What is alike stays alike for long.
const KEPT_SECONDS: u32 = 300;

#[derive(Clone)]
struct Service {
    client: Client,
    slow_share: f64,
}

#[derive(Deserialize)]
struct Asked {
    /// The product that somebody looks at.
    product: String,
}

/// Runs the service.
pub(crate) async fn run(replica: Replica, slow_share: f64) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/recommendations", get(recommend))
        .with_state(Service { client: Client::from_env()?, slow_share });
    serving::serve(replica, router).await
}

async fn recommend(
    State(service): State<Service>,
    Query(asked): Query<Asked>,
    context: RequestContext,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    if fastrand::f64() < service.slow_share {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(300..=800))).await;
    }
    let catalogue: Catalogue = service.client.get(&context, "product", "/products").await?;
    // Only which they are. What they cost is for the product service to say, whenever somebody asks: that changes more
    // often than what goes together, and must not be kept as long.
    let ids: Vec<String> =
        alike(&asked.product, catalogue.products).into_iter().map(|product| product.id).collect();
    Ok(Kept { seconds: KEPT_SECONDS, tags: &["recommendations"] }.answer(&headers, &ids, &ids))
}

/// Other products: first of the same kind, then of a like price.
fn alike(to: &str, mut products: Vec<Product>) -> Vec<Product> {
    let Some(at) = products.iter().position(|product| product.id == to) else {
        products.truncate(MOST);
        return products;
    };
    let shown = products.remove(at);
    products.sort_by_key(|other| (other.category != shown.category, other.price.0.abs_diff(shown.price.0)));
    products.truncate(MOST);
    products
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::Cents;

    fn product(id: &str, category: &str, price: u64) -> Product {
        Product {
            id: id.to_owned(),
            name: id.to_owned(),
            category: category.to_owned(),
            description: String::new(),
            price: Cents(price),
            rating: None,
        }
    }

    #[test]
    fn the_same_kind_comes_first_and_never_the_product_itself() {
        let all = vec![
            product("rug-1", "rug", 100),
            product("tote", "tote", 101),
            product("rug-2", "rug", 900),
            product("scarf", "scarf", 150),
        ];
        let ids: Vec<String> = alike("rug-1", all.clone()).into_iter().map(|p| p.id).collect();
        assert_eq!(ids, ["rug-2", "tote", "scarf"]);
        assert_eq!(alike("unknown", all).len(), 4);
    }
}
