//! Where a request that would go to the origin looks in further places first.

use crate::{
    body::Body,
    cache::{
        Answered, Cache,
        entry::Entry,
        fill::Filler,
        freshness::Freshness,
        lookup::{self, Lookup, Stored},
        seconds_now,
        status::{Forwarded, Report},
        storing::Kind,
        vary,
    },
};
use http::{Response, request::Parts};
use std::sync::Arc;

impl Cache {
    /// Gives what a further place has for all who want the same, and keeps it in memory. What is stale there the origin
    /// is asked about as if it were in memory. An error is the turn that was not needed.
    pub(in crate::cache) async fn look_farther(
        &self,
        lookup: &mut Lookup,
        request: &Parts,
        filler: Filler,
    ) -> Result<(Response<Body>, Answered), Filler> {
        let directives = &lookup.directives;
        let own = directives.no_store || directives.no_cache || directives.max_age == Some(0);
        if own || lookup.kind == Kind::Head || !self.store.has_farther() {
            return Err(filler);
        }
        let found = self.store.look_farther(lookup.key(), &request.headers, seconds_now()).await;
        let Some(found) = found else { return Err(filler) };
        let detail = found.brought().map(|tier| tier.name());
        let Some(found) = self.by_these_rules(lookup, request, found) else { return Err(filler) };
        let now = seconds_now();
        if let Some(terms) = self.usable(lookup, request, &found) {
            let kept = filler.keep(found, now);
            let report = Report { detail, ..Report::hit(0) };
            return Ok((self.serve(request, &kept, &terms, now, report), Answered::Hit));
        }
        let selected = found.extent().is_none() && vary::selects(found.selector(), &request.headers);
        if selected && lookup.stored.is_none() {
            let terms = lookup::terms(&found, &self.rules, now);
            let if_error = match terms.judge(&lookup.directives, now) {
                Freshness::Fresh { .. } => true,
                Freshness::Stale { may, .. } => may.if_error,
                Freshness::MustRevalidate { if_error, .. } => if_error,
            };
            lookup.stored = Some(Stored { entry: Arc::new(found), terms, if_error });
            lookup.why = Forwarded::Stale;
        }
        Err(filler)
    }

    /// What was found, as the rules that hold here would have kept it. `None` if they would not.
    fn by_these_rules(&self, lookup: &Lookup, request: &Parts, found: Entry) -> Option<Entry> {
        if self.is_by_these(&found) {
            return Some(found);
        }
        self.rejudged(lookup, request, &found)
    }
}
