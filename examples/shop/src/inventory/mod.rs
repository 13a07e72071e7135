//! The inventory service: what is in stock, over gRPC.

mod shelves;

use crate::{
    client::{CallError, Client},
    product,
    request::{Call, RequestContext},
    serving::{self, Replica, SERVED_BY, VERSION},
};
use http::StatusCode;
use shelves::{Refusal, Shelves};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tonic::{Code, Request, Response, Status, transport::Channel};
use wire::{
    AvailableRequest, AvailableResponse, CommitRequest, CommitResponse, Line, ReleaseRequest,
    ReleaseResponse, ReserveRequest, ReserveResponse,
    inventory_client::InventoryClient,
    inventory_server::{Inventory, InventoryServer},
};

/// What protox and tonic made of `proto/inventory.proto`.
#[allow(unreachable_pub, missing_docs, clippy::all)]
mod wire {
    tonic::include_proto!("shop.inventory.v1");
}

/// The port that callers use.
const PORT: u16 = 9090;
/// A delivery fills the shelves this often.
const DELIVERY: Duration = Duration::from_secs(30);

/// Runs the service.
pub(crate) async fn run(replica: Replica, shelf: u32) -> anyhow::Result<()> {
    let service = Service { shelves: Arc::new(Mutex::new(Shelves::stocked(product::ids(), shelf))) };
    let deliveries = service.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(DELIVERY).await;
            deliveries.shelves().deliver(Instant::now());
        }
    });
    let router = tonic::service::Routes::new(InventoryServer::new(service)).into_axum_router();
    serving::serve(replica, router).await
}

#[derive(Clone)]
struct Service {
    shelves: Arc<Mutex<Shelves>>,
}

impl Service {
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Inventory for Service {
    async fn available(
        &self,
        request: Request<AvailableRequest>,
    ) -> Result<Response<AvailableResponse>, Status> {
        let wanted = request.into_inner().products;
        let stock = self.shelves().available(&wanted);
        let stock = stock.into_iter().map(|(product, quantity)| Line { product, quantity }).collect();
        Ok(Response::new(AvailableResponse { stock }))
    }

    async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<ReserveResponse>, Status> {
        let ReserveRequest { order, lines } = request.into_inner();
        let lines = lines.into_iter().map(|line| (line.product, line.quantity));
        self.shelves().reserve(&order, lines, Instant::now())?;
        Ok(Response::new(ReserveResponse {}))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        self.shelves().commit(&request.into_inner().order)?;
        Ok(Response::new(CommitResponse {}))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.shelves().release(&request.into_inner().order);
        Ok(Response::new(ReleaseResponse {}))
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Malformed(_) => Self::invalid_argument(message),
            Refusal::UnknownProduct(_) | Refusal::NoReservation => Self::not_found(message),
            Refusal::SoldOut { .. } => Self::failed_precondition(message),
            Refusal::TooManyReservations => Self::resource_exhausted(message),
        }
    }
}

/// Calls the inventory service, for those who may.
#[derive(Clone)]
pub(crate) struct Warehouse {
    client: InventoryClient<Channel>,
}

impl Warehouse {
    /// A caller over the same way as other calls.
    pub(crate) fn new(client: &Client) -> anyhow::Result<Self> {
        Ok(Self { client: InventoryClient::new(client.grpc("inventory", PORT)?) })
    }

    /// How many there are of some products.
    pub(crate) async fn available(
        &self,
        context: &RequestContext,
        products: Vec<String>,
    ) -> Result<BTreeMap<String, u32>, CallError> {
        let mut client = self.client.clone();
        let request = request(context, AvailableRequest { products });
        let answer = noted(context, "Available", client.available(request)).await?;
        Ok(answer.stock.into_iter().map(|line| (line.product, line.quantity)).collect())
    }

    /// Holds stock for an order: all of it or none.
    pub(crate) async fn reserve(
        &self,
        context: &RequestContext,
        order: &str,
        lines: impl Iterator<Item = (String, u32)>,
    ) -> Result<(), CallError> {
        let lines = lines.map(|(product, quantity)| Line { product, quantity }).collect();
        let mut client = self.client.clone();
        let request = request(context, ReserveRequest { order: order.to_owned(), lines });
        noted(context, "Reserve", client.reserve(request)).await.map(drop)
    }

    /// The goods go out.
    pub(crate) async fn commit(&self, context: &RequestContext, order: &str) -> Result<(), CallError> {
        let mut client = self.client.clone();
        let request = request(context, CommitRequest { order: order.to_owned() });
        noted(context, "Commit", client.commit(request)).await.map(drop)
    }

    /// The goods can be sold again.
    pub(crate) async fn release(&self, context: &RequestContext, order: &str) -> Result<(), CallError> {
        let mut client = self.client.clone();
        let request = request(context, ReleaseRequest { order: order.to_owned() });
        noted(context, "Release", client.release(request)).await.map(drop)
    }
}

fn request<T>(context: &RequestContext, message: T) -> Request<T> {
    let mut request = Request::new(message);
    context.carry_into(request.metadata_mut().as_mut());
    request
}

/// Waits for a call and notes how it went.
async fn noted<T>(
    context: &RequestContext,
    method: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    let began = Instant::now();
    let result = call.await;
    let metadata = match &result {
        Ok(answer) => answer.metadata(),
        Err(status) => status.metadata(),
    };
    let text = |name| metadata.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (replica, version) = (text(SERVED_BY), text(VERSION));
    let result = result.map(Response::into_inner).map_err(|status| call_error(&status));
    context.note(Call {
        service: "inventory",
        what: format!("gRPC {method}"),
        outcome: result.as_ref().map_or_else(CallError::outcome, |_| "OK".to_owned()),
        good: result.is_ok(),
        replica,
        version,
        took: began.elapsed(),
        cache: None,
    });
    result
}

/// The HTTP status that says the same, so that callers treat REST and gRPC alike.
fn call_error(status: &Status) -> CallError {
    let service = "inventory";
    let message = status.message().to_owned();
    let status = match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => return CallError::TimedOut { service },
        Code::Unavailable | Code::Unknown => return CallError::Unreachable { service, why: message },
        Code::FailedPrecondition => StatusCode::CONFLICT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    CallError::Refused { service, status, message }
}
