//! The product service: what is sold. Edition v1 knows names and prices, v2 knows ratings too.

use crate::{
    fault::Fault,
    kept::Kept,
    money::Cents,
    prices::{self, Prices},
    serving::{self, Replica},
};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};

/// How long the shelves may show what they showed before. Who takes money asks each time.
const KEPT_SECONDS: u32 = 30;

/// An edition of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Edition {
    /// Names and prices.
    V1,
    /// Ratings too.
    V2,
}

impl Edition {
    /// As it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// Something to buy.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Product {
    /// Its id.
    pub(crate) id: String,
    /// What it is called.
    pub(crate) name: String,
    /// What kind of thing it is.
    pub(crate) category: String,
    /// One sentence about it.
    pub(crate) description: String,
    /// What one piece costs.
    pub(crate) price: Cents,
    /// What people think of it; only v2 knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rating: Option<Rating>,
}

/// What people think of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Rating {
    /// Tenths of stars, up to 50.
    pub(crate) tenths: u8,
    /// How many people said so.
    pub(crate) count: u32,
}

/// Some products, and who told.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Catalogue {
    /// The version that answered.
    pub(crate) version: String,
    /// The replica that answered.
    pub(crate) replica: String,
    /// The products.
    pub(crate) products: Vec<Product>,
}

/// One product, and who told.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ProductAnswer {
    /// The version that answered.
    pub(crate) version: String,
    /// The replica that answered.
    pub(crate) replica: String,
    /// The product.
    pub(crate) product: Product,
}

/// What a product is to cost from now on.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct NewPrice {
    /// The product's id.
    pub(crate) product: String,
    /// What one piece costs.
    pub(crate) price: Cents,
}

struct Seed {
    id: &'static str,
    name: &'static str,
    category: &'static str,
    description: &'static str,
    price: u64,
    tenths: u8,
    count: u32,
}

const fn seed(
    id: &'static str,
    name: &'static str,
    category: &'static str,
    price: u64,
    (tenths, count): (u8, u32),
    description: &'static str,
) -> Seed {
    Seed { id, name, category, description, price, tenths, count }
}

const SEEDS: [Seed; 12] = [
    seed(
        "fjord-blanket",
        "Fjord blanket",
        "blanket",
        12_900,
        (48, 214),
        "Lambswool twill in the blues of deep water, washed until it is soft.",
    ),
    seed(
        "ember-scarf",
        "Ember scarf",
        "scarf",
        5_400,
        (46, 131),
        "A long herringbone scarf that keeps its warmth when the wind does not.",
    ),
    seed(
        "dune-rug",
        "Dune rug",
        "rug",
        24_900,
        (44, 58),
        "Flat-woven by hand on a wide loom; the stripes follow the light.",
    ),
    seed(
        "moss-cushion",
        "Moss cushion",
        "cushion",
        3_900,
        (47, 302),
        "Basket weave in mossy greens, filled with kapok.",
    ),
    seed(
        "harbour-tote",
        "Harbour tote",
        "tote",
        4_500,
        (45, 177),
        "Heavy canvas that carries the market home and stands up by itself.",
    ),
    seed(
        "rowan-throw",
        "Rowan throw",
        "blanket",
        9_800,
        (43, 89),
        "Light as a leaf, checked in berry red and oat.",
    ),
    seed(
        "slate-scarf",
        "Slate scarf",
        "scarf",
        4_900,
        (49, 410),
        "Merino houndstooth in greys that go with everything.",
    ),
    seed(
        "terrace-rug",
        "Terrace rug",
        "rug",
        18_900,
        (42, 37),
        "Recycled cotton for bare feet, inside and out.",
    ),
    seed(
        "lilac-cushion",
        "Lilac cushion",
        "cushion",
        4_200,
        (46, 95),
        "Twill in two lilacs and one surprise.",
    ),
    seed(
        "orchard-tote",
        "Orchard tote",
        "tote",
        3_800,
        (44, 66),
        "Striped like an awning, with a pocket for the list.",
    ),
    seed(
        "glacier-throw",
        "Glacier throw",
        "blanket",
        11_500,
        (50, 23),
        "Undyed wool with one line of ice blue.",
    ),
    seed(
        "saffron-cushion",
        "Saffron cushion",
        "cushion",
        4_400,
        (45, 148),
        "Herringbone in saffron and clay; it warms a whole room.",
    ),
];

impl Seed {
    fn product(&self, edition: Edition, prices: &Prices) -> Product {
        Product {
            id: self.id.to_owned(),
            name: self.name.to_owned(),
            category: self.category.to_owned(),
            description: self.description.to_owned(),
            price: prices.of(self.id).unwrap_or(Cents(self.price)),
            rating: (edition == Edition::V2).then_some(Rating { tenths: self.tenths, count: self.count }),
        }
    }
}

/// The ids of everything that is sold; the warehouse stocks just these.
pub(crate) fn ids() -> impl Iterator<Item = &'static str> {
    SEEDS.iter().map(|seed| seed.id)
}

#[derive(Clone)]
struct Service {
    replica: Replica,
    edition: Edition,
    prices: Prices,
}

/// Runs the service.
pub(crate) async fn run(replica: Replica, edition: Edition, prices: Prices) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/products", get(several).post(change_price))
        .route("/products/{id}", get(one))
        .with_state(Service { replica: replica.clone(), edition, prices });
    serving::serve(replica, router).await
}

#[derive(Deserialize)]
struct Choice {
    /// Ids with commas between them; all products if it is left out.
    ids: Option<String>,
}

impl Service {
    fn product(&self, seed: &Seed) -> Product {
        seed.product(self.edition, &self.prices)
    }

    fn about(&self, product: Product) -> ProductAnswer {
        ProductAnswer {
            version: self.replica.version.to_string(),
            replica: self.replica.name.to_string(),
            product,
        }
    }
}

fn find(id: &str) -> Result<&'static Seed, Fault> {
    SEEDS.iter().find(|seed| seed.id == id).ok_or_else(|| Fault::not_found("product", id))
}

async fn several(
    State(service): State<Service>,
    Query(choice): Query<Choice>,
    headers: HeaderMap,
) -> Response {
    let seeds = match &choice.ids {
        None => SEEDS.iter().collect::<Vec<_>>(),
        Some(ids) => {
            let wanted: Vec<&str> = ids.split(',').collect();
            SEEDS.iter().filter(|seed| wanted.contains(&seed.id)).collect()
        }
    };
    let products: Vec<Product> = seeds.iter().map(|seed| service.product(seed)).collect();
    let mut tags = vec!["catalogue".to_owned()];
    tags.extend(seeds.iter().map(|seed| tag(seed.id)));
    let catalogue = Catalogue {
        version: service.replica.version.to_string(),
        replica: service.replica.name.to_string(),
        products,
    };
    kept(&tags, &headers, &catalogue, &(&catalogue.version, &catalogue.products))
}

async fn one(
    State(service): State<Service>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let answer = service.about(service.product(find(&id)?));
    Ok(kept(&[tag(&id)], &headers, &answer, &(&answer.version, &answer.product)))
}

/// The tag of every answer in which a product is shown.
fn tag(id: &str) -> String {
    format!("product-{id}")
}

fn kept(tags: &[String], asked: &HeaderMap, document: &impl Serialize, says: &impl Serialize) -> Response {
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    Kept { seconds: KEPT_SECONDS, tags: &tags }.answer(asked, document, says)
}

/// Changes a price. The catalogue is another one now, and so is the page of the product: whoever keeps answers and sees
/// this one go by knows it of both, by the request's address and by `Content-Location`.
async fn change_price(
    State(service): State<Service>,
    Json(wanted): Json<NewPrice>,
) -> Result<Response, Fault> {
    let seed = find(&wanted.product)?;
    if !prices::is_possible(&wanted.price) {
        return Err(Fault::bad_request(format!("nothing costs {}", wanted.price)));
    }
    service.prices.set(seed.id, wanted.price).map_err(|error| {
        Fault::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the price was not changed: {error:#}"))
    })?;
    let page = [(header::CONTENT_LOCATION, format!("/products/{}", seed.id))];
    Ok((page, Json(service.about(service.product(seed)))).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_v2_tells_ratings() {
        let keys = |edition| {
            let usual = Prices::in_folder(Some("nowhere".into()));
            let document = serde_json::to_value(SEEDS[0].product(edition, &usual)).expect("JSON");
            document.as_object().expect("an object").contains_key("rating")
        };
        assert!(!keys(Edition::V1));
        assert!(keys(Edition::V2));
    }

    #[test]
    fn ids_are_unique() {
        let distinct: std::collections::BTreeSet<_> = ids().collect();
        assert_eq!(distinct.len(), SEEDS.len());
    }
}
