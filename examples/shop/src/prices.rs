//! The price list: what somebody changed while the shop was open. All replicas of the product service read the same one.

use crate::money::Cents;
use anyhow::Context;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The most that anything may cost.
const DEAREST: Cents = Cents(10_000_000);

/// A folder with one file for each price that is not the usual one.
#[derive(Clone, Debug)]
pub(crate) struct Prices {
    folder: Arc<Path>,
}

impl Prices {
    /// The list in this folder, or in one for temporary files.
    pub(crate) fn in_folder(folder: Option<PathBuf>) -> Self {
        let folder = folder.unwrap_or_else(|| std::env::temp_dir().join("weft-shop-prices"));
        Self { folder: folder.into() }
    }

    /// What a product costs if it is not what it usually costs. Read each time: a price that was changed a moment ago,
    /// by whichever replica, is the price. What cannot be read does not count.
    pub(crate) fn of(&self, id: &str) -> Option<Cents> {
        fs::read_to_string(self.folder.join(id)).ok()?.trim().parse().ok().map(Cents).filter(is_possible)
    }

    /// Changes a price. `id` is one that is sold, so that nothing else becomes part of a path.
    pub(crate) fn set(&self, id: &str, price: Cents) -> anyhow::Result<()> {
        let write = || -> io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            // Nobody reads half a number: it is written beside its place, and then takes it.
            let beside = self.folder.join(format!(".{id}-{:016x}", fastrand::u64(..)));
            fs::write(&beside, format!("{}\n", price.0))?;
            fs::rename(&beside, self.folder.join(id))
        };
        write().with_context(|| format!("{} cannot be written to", self.folder.display()))
    }
}

/// True for what something can cost.
pub(crate) fn is_possible(price: &Cents) -> bool {
    (Cents(1)..=DEAREST).contains(price)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_price_is_known_to_all_at_once_and_nonsense_is_none() {
        let folder = std::env::temp_dir().join(format!("weft-shop-prices-{}", std::process::id()));
        let (one, other) = (Prices::in_folder(Some(folder.clone())), Prices::in_folder(Some(folder.clone())));
        assert_eq!(one.of("dune-rug"), None);
        one.set("dune-rug", Cents(9_900)).expect("written");
        assert_eq!(other.of("dune-rug"), Some(Cents(9_900)));
        other.set("dune-rug", Cents(0)).expect("written");
        assert_eq!(one.of("dune-rug"), None, "nothing is free");
        fs::remove_dir_all(folder).expect("removed");
    }
}
