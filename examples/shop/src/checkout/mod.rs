//! The checkout service: turns a cart into an order.

mod mesh;
mod order;

use crate::{
    client::Client,
    fault::Fault,
    inventory::Warehouse,
    request::RequestContext,
    serving::{self, Replica},
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use mesh::Mesh;
pub(crate) use order::{Order, OrderRequest, Payment};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

/// Orders that are kept; the oldest goes when another one comes.
const MOST_ORDERS: usize = 10_000;

#[derive(Clone)]
struct Service {
    client: Client,
    warehouse: Warehouse,
    orders: Arc<Mutex<Orders>>,
}

#[derive(Default)]
struct Orders {
    by_id: HashMap<String, Order>,
    oldest_first: VecDeque<String>,
}

impl Orders {
    fn keep(&mut self, order: Order) {
        if self.oldest_first.len() == MOST_ORDERS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        self.oldest_first.push_back(order.id.clone());
        self.by_id.insert(order.id.clone(), order);
    }
}

/// Runs the service.
pub(crate) async fn run(replica: Replica) -> anyhow::Result<()> {
    let client = Client::from_env()?;
    let warehouse = Warehouse::new(&client)?;
    let router = Router::new()
        .route("/orders", post(place))
        .route("/orders/{id}", get(show))
        .with_state(Service { client, warehouse, orders: Arc::default() });
    serving::serve(replica, router).await
}

async fn place(
    State(service): State<Service>,
    context: RequestContext,
    Json(wanted): Json<OrderRequest>,
) -> Result<(StatusCode, Json<Order>), Fault> {
    let id = format!("{:08x}", fastrand::u32(..));
    // A caller that goes away must not leave an order half done: what has begun is brought to its end.
    let placing = tokio::spawn(async move {
        let mesh = Mesh::new(&service.client, &service.warehouse, &context);
        let order = order::place(&mesh, id, wanted).await?;
        service.orders.lock().unwrap_or_else(PoisonError::into_inner).keep(order.clone());
        Ok::<_, order::Failure>(order)
    });
    match placing.await {
        Ok(result) => Ok((StatusCode::CREATED, Json(result?))),
        Err(_) => Err(Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "the order was cut short")),
    }
}

async fn show(State(service): State<Service>, Path(id): Path<String>) -> Result<Json<Order>, Fault> {
    let orders = service.orders.lock().unwrap_or_else(PoisonError::into_inner);
    orders.by_id.get(&id).cloned().map(Json).ok_or_else(|| Fault::not_found("order", &id))
}
