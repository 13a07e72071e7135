//! Stock and reservations: nothing is ever sold that is not there.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, Instant},
};

/// A reservation that is neither committed nor released ends after this.
const RESERVED_FOR: Duration = Duration::from_secs(60);
const MOST_RESERVATIONS: usize = 10_000;
const MOST_LINES: usize = 100;
const LONGEST_ORDER: usize = 64;

/// Why the warehouse does not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed(&'static str),
    UnknownProduct(String),
    SoldOut { product: String, left: u32 },
    NoReservation,
    TooManyReservations,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => f.write_str(why),
            Self::UnknownProduct(product) => write!(f, "there is no product `{product}`"),
            Self::SoldOut { product, left: 0 } => write!(f, "{product} is sold out"),
            Self::SoldOut { product, left } => write!(f, "only {left} left of {product}"),
            Self::NoReservation => f.write_str("there is no such reservation, or it has expired"),
            Self::TooManyReservations => f.write_str("too many reservations at once; try again in a minute"),
        }
    }
}

/// The shelves of the warehouse.
#[derive(Debug)]
pub(super) struct Shelves {
    /// What can be sold: what lies there without what is reserved.
    free: BTreeMap<String, u32>,
    reservations: HashMap<String, Reservation>,
    /// What a delivery fills each shelf up to.
    full: u32,
}

#[derive(Debug)]
struct Reservation {
    lines: BTreeMap<String, u32>,
    since: Instant,
}

impl Shelves {
    /// Full shelves.
    pub(super) fn stocked<'a>(products: impl Iterator<Item = &'a str>, full: u32) -> Self {
        let free = products.map(|product| (product.to_owned(), full)).collect();
        Self { free, reservations: HashMap::new(), full }
    }

    /// What can be sold of these products, of all if none is named; unknown ones are left out.
    pub(super) fn available(&self, products: &[String]) -> Vec<(String, u32)> {
        let wanted = |product: &String| products.is_empty() || products.contains(product);
        self.free.iter().filter(|(product, _)| wanted(product)).map(|(p, n)| (p.clone(), *n)).collect()
    }

    /// Holds stock for an order: every line or none. Asked again for the same order it changes nothing.
    pub(super) fn reserve(
        &mut self,
        order: &str,
        lines: impl Iterator<Item = (String, u32)>,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.expire(now);
        if order.is_empty() || order.len() > LONGEST_ORDER {
            return Err(Refusal::Malformed("`order` has to be the id of an order"));
        }
        if self.reservations.contains_key(order) {
            return Ok(());
        }
        if self.reservations.len() >= MOST_RESERVATIONS {
            return Err(Refusal::TooManyReservations);
        }
        // The same product in two lines counts once, with the sum of both.
        let mut wanted: BTreeMap<String, u32> = BTreeMap::new();
        for (number, (product, quantity)) in lines.enumerate() {
            if number == MOST_LINES {
                return Err(Refusal::Malformed("too many lines for one order"));
            }
            if quantity == 0 {
                return Err(Refusal::Malformed("a line has to have a quantity"));
            }
            let sum = wanted.entry(product).or_default();
            *sum = sum.saturating_add(quantity);
        }
        if wanted.is_empty() {
            return Err(Refusal::Malformed("an order has to have lines"));
        }
        for (product, quantity) in &wanted {
            match self.free.get(product) {
                None => return Err(Refusal::UnknownProduct(product.clone())),
                Some(left) if left < quantity => {
                    return Err(Refusal::SoldOut { product: product.clone(), left: *left });
                }
                Some(_) => {}
            }
        }
        for (product, quantity) in &wanted {
            if let Some(left) = self.free.get_mut(product) {
                *left -= quantity;
            }
        }
        self.reservations.insert(order.to_owned(), Reservation { lines: wanted, since: now });
        Ok(())
    }

    /// The goods of a reservation are gone for good.
    pub(super) fn commit(&mut self, order: &str) -> Result<(), Refusal> {
        self.reservations.remove(order).map(drop).ok_or(Refusal::NoReservation)
    }

    /// The goods of a reservation can be sold again.
    pub(super) fn release(&mut self, order: &str) {
        if let Some(reservation) = self.reservations.remove(order) {
            for (product, quantity) in reservation.lines {
                let left = self.free.entry(product).or_default();
                *left = left.saturating_add(quantity);
            }
        }
    }

    /// New goods arrive: what was sold is there again. What is reserved still takes up its place.
    pub(super) fn deliver(&mut self, now: Instant) {
        self.expire(now);
        let mut held: HashMap<&str, u32> = HashMap::new();
        for (product, quantity) in self.reservations.values().flat_map(|reservation| &reservation.lines) {
            let sum = held.entry(product).or_default();
            *sum = sum.saturating_add(*quantity);
        }
        for (product, left) in &mut self.free {
            let held = held.get(product.as_str()).copied().unwrap_or(0);
            *left = (*left).max(self.full.saturating_sub(held));
        }
    }

    fn expire(&mut self, now: Instant) {
        let expired: Vec<String> = self
            .reservations
            .iter()
            .filter(|(_, reservation)| now.saturating_duration_since(reservation.since) > RESERVED_FOR)
            .map(|(order, _)| order.clone())
            .collect();
        for order in expired {
            self.release(&order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelves(full: u32) -> Shelves {
        Shelves::stocked(["rug", "scarf"].into_iter(), full)
    }

    fn lines(of: &[(&str, u32)]) -> impl Iterator<Item = (String, u32)> {
        of.iter()
            .map(|(product, quantity)| ((*product).to_owned(), *quantity))
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn left(shelves: &Shelves, product: &str) -> u32 {
        shelves.available(&[product.to_owned()])[0].1
    }

    #[test]
    fn nothing_is_oversold_however_orders_end() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut shelves = shelves(10);
        let (mut reserved, mut sold) = (Vec::new(), 0);
        let now = Instant::now();
        for order in 0..2000 {
            let id = order.to_string();
            let quantity = random.u32(1..5);
            let before = left(&shelves, "rug");
            match shelves.reserve(&id, lines(&[("rug", quantity)]), now) {
                Ok(()) => reserved.push((id, quantity)),
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::SoldOut { product: "rug".into(), left: before });
                    assert!(quantity > before);
                }
            }
            if !reserved.is_empty() && random.bool() {
                let (id, quantity) = reserved.swap_remove(random.usize(..reserved.len()));
                if random.u32(..50) == 0 {
                    shelves.commit(&id).expect("reserved");
                    sold += quantity;
                } else {
                    shelves.release(&id);
                }
            }
            let held: u32 = reserved.iter().map(|(_, quantity)| quantity).sum();
            assert_eq!(left(&shelves, "rug") + held + sold, 10);
        }
        assert!(sold > 0);
    }

    #[test]
    fn an_order_is_reserved_whole_or_not_at_all() {
        let mut shelves = shelves(3);
        let refusal = shelves.reserve("1", lines(&[("rug", 1), ("scarf", 4)]), Instant::now());
        assert_eq!(refusal, Err(Refusal::SoldOut { product: "scarf".into(), left: 3 }));
        assert_eq!((left(&shelves, "rug"), left(&shelves, "scarf")), (3, 3));
        let split = shelves.reserve("2", lines(&[("rug", 2), ("rug", 2)]), Instant::now());
        assert_eq!(split, Err(Refusal::SoldOut { product: "rug".into(), left: 3 }));
    }

    #[test]
    fn asking_twice_for_one_order_reserves_once() {
        let mut shelves = shelves(3);
        for _ in 0..2 {
            shelves.reserve("1", lines(&[("rug", 2)]), Instant::now()).expect("reserved");
        }
        assert_eq!(left(&shelves, "rug"), 1);
        shelves.release("1");
        shelves.release("1");
        assert_eq!(left(&shelves, "rug"), 3);
        assert_eq!(shelves.commit("1"), Err(Refusal::NoReservation));
    }

    #[test]
    fn a_forgotten_reservation_expires_and_a_delivery_fills_only_what_was_sold() {
        let mut shelves = shelves(3);
        let start = Instant::now();
        shelves.reserve("sold", lines(&[("rug", 1)]), start).expect("reserved");
        shelves.commit("sold").expect("reserved");
        shelves.reserve("forgotten", lines(&[("rug", 1)]), start).expect("reserved");
        shelves.deliver(start);
        assert_eq!(left(&shelves, "rug"), 2, "one is still reserved");
        shelves.deliver(start + RESERVED_FOR + Duration::from_secs(1));
        assert_eq!(left(&shelves, "rug"), 3);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut shelves = shelves(3);
        let now = Instant::now();
        assert!(shelves.reserve("", lines(&[("rug", 1)]), now).is_err());
        assert!(shelves.reserve("1", lines(&[]), now).is_err());
        assert!(shelves.reserve("1", lines(&[("rug", 0)]), now).is_err());
        let unknown = shelves.reserve("1", lines(&[("boat", 1)]), now);
        assert_eq!(unknown, Err(Refusal::UnknownProduct("boat".into())));
    }
}
