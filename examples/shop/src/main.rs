//! The demo shop: one program, one subcommand per service.

mod cache_status;
mod cart;
mod checkout;
mod client;
mod fault;
mod inventory;
mod kept;
mod load;
mod money;
mod notification;
mod prices;
mod product;
mod recommendation;
mod request;
mod serving;
mod storefront;
mod user;

use clap::{Parser, Subcommand};
use serving::Replica;
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// One service of the demo shop.
///
/// Listens on 127.0.0.1 at $PORT. Calls the others by name (http://product:8080) through the proxy in $http_proxy,
/// which `weft up` sets. Without a mesh, SHOP_DIRECT says where they are:
/// SHOP_DIRECT=product:8080=127.0.0.1:4001,cart:8080=127.0.0.1:4002
#[derive(Debug, Parser)]
#[command(name = "shop", version)]
struct Options {
    #[command(subcommand)]
    service: Service,
}

#[derive(Debug, Subcommand)]
enum Service {
    /// The pages that people see.
    Storefront,
    /// Who buys.
    User,
    /// What is sold.
    Product {
        /// Which edition of the service this is: v2 knows ratings.
        #[arg(long, env = "WEFT_LABEL_VERSION", default_value = "v1")]
        edition: product::Edition,
        /// Where changed prices are: a folder that all replicas share. Without it, one for temporary files.
        #[arg(long, env = "SHOP_PRICES", value_name = "FOLDER")]
        prices: Option<std::path::PathBuf>,
    },
    /// What somebody is about to buy.
    Cart,
    /// Turns a cart into an order.
    Checkout,
    /// What is in stock (gRPC).
    Inventory {
        /// Pieces of each product that a delivery fills the shelves up to.
        #[arg(long, env = "SHOP_SHELF", default_value_t = 60)]
        shelf: u32,
    },
    /// What else somebody may like.
    Recommendation {
        /// The share of answers that take 300 to 800 ms longer, from 0 to 1.
        #[arg(long, env = "SHOP_SLOW_SHARE", default_value_t = 0.15)]
        slow_share: f64,
    },
    /// Tells people what became of their order.
    Notification,
    /// A few visitors who browse and buy, so that there is traffic to look at.
    Load(load::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_env("SHOP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match run(options.service).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(service: Service) -> anyhow::Result<()> {
    match service {
        Service::Storefront => storefront::run(Replica::of("storefront", "v1")).await,
        Service::User => user::run(Replica::of("user", "v1")).await,
        Service::Product { edition, prices } => {
            let prices = prices::Prices::in_folder(prices);
            product::run(Replica::of("product", edition.as_str()), edition, prices).await
        }
        Service::Cart => cart::run(Replica::of("cart", "v1")).await,
        Service::Checkout => checkout::run(Replica::of("checkout", "v1")).await,
        Service::Inventory { shelf } => inventory::run(Replica::of("inventory", "v1"), shelf).await,
        Service::Recommendation { slow_share } => {
            recommendation::run(Replica::of("recommendation", "v1"), slow_share).await
        }
        Service::Notification => notification::run(Replica::of("notification", "v1")).await,
        Service::Load(options) => load::run(options).await,
    }
}
