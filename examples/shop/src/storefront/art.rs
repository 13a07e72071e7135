//! Pictures of the products: each is woven here, thread by thread, as SVG.

use super::page::Text;
use std::fmt::Write;

/// Threads each way in the part of a weave that repeats.
const THREADS: usize = 8;
/// The width of a thread.
const WIDTH: usize = 4;

/// How threads cross, and which colour each of them has.
#[derive(Clone, Copy)]
struct Weave {
    /// True where the upright thread (warp) lies on top.
    warp_on_top: fn(usize, usize) -> bool,
    /// The colour of each upright thread.
    warp: [usize; THREADS],
    /// The colour of each level thread (weft).
    weft: [usize; THREADS],
}

const TWILL: Weave = Weave { warp_on_top: |x, y| (x + y) % 4 < 2, warp: [0; THREADS], weft: [1; THREADS] };
const HERRINGBONE: Weave = Weave {
    warp_on_top: |x, y| if x < 4 { (x + y) % 4 < 2 } else { (7 - x + y) % 4 < 2 },
    warp: [0; THREADS],
    weft: [1; THREADS],
};
const HOUNDSTOOTH: Weave = Weave {
    warp_on_top: |x, y| (x + y) % 4 < 2,
    warp: [0, 0, 0, 0, 1, 1, 1, 1],
    weft: [0, 0, 0, 0, 1, 1, 1, 1],
};
const BASKET: Weave =
    Weave { warp_on_top: |x, y| (x / 2 + y / 2) % 2 == 0, warp: [0; THREADS], weft: [1; THREADS] };
const CHECK: Weave = Weave {
    warp_on_top: |x, y| (x + y) % 2 == 0,
    warp: [0, 0, 0, 0, 1, 1, 2, 1],
    weft: [0, 0, 0, 0, 1, 1, 2, 1],
};
const STRIPES: Weave =
    Weave { warp_on_top: |x, y| (x + y) % 4 == 0, warp: [0; THREADS], weft: [1, 1, 1, 2, 2, 1, 0, 0] };

/// Three colours of thread, and the wall behind.
struct Palette {
    threads: [&'static str; 3],
    wall: &'static str,
}

const fn palette(a: &'static str, b: &'static str, c: &'static str, wall: &'static str) -> Palette {
    Palette { threads: [a, b, c], wall }
}

/// What a product is woven of. Products that nobody drew get one of these by chance of their name.
fn cloth(id: &str) -> (Weave, Palette) {
    match id {
        "fjord-blanket" => (TWILL, palette("#1f4e79", "#5b8fb9", "#d6e6f2", "#e3ecf3")),
        "ember-scarf" => (HERRINGBONE, palette("#8c2f1b", "#d9683c", "#f3c677", "#f6e6da")),
        "dune-rug" => (STRIPES, palette("#b58a5a", "#e2c799", "#8a5a34", "#f4ebdd")),
        "moss-cushion" => (BASKET, palette("#4d6b3c", "#88a36b", "#dfe7c9", "#e9eee0")),
        "harbour-tote" => (CHECK, palette("#f2efe6", "#23395b", "#c8553d", "#e4e9f0")),
        "rowan-throw" => (CHECK, palette("#efe6d5", "#a4243b", "#5c1a28", "#f5e5e3")),
        "slate-scarf" => (HOUNDSTOOTH, palette("#3b424c", "#d7dade", "#8a939f", "#e8eaed")),
        "terrace-rug" => (STRIPES, palette("#2f6f6a", "#e9d8a6", "#e76f51", "#e4efed")),
        "lilac-cushion" => (TWILL, palette("#7d5ba6", "#c3a6e0", "#f3c677", "#efe8f5")),
        "orchard-tote" => (STRIPES, palette("#f4f1de", "#81b29a", "#e07a5f", "#e8f1ec")),
        "glacier-throw" => (HERRINGBONE, palette("#cfd8dc", "#f7f9fa", "#7fb7d6", "#e6f0f5")),
        "saffron-cushion" => (HERRINGBONE, palette("#b5622a", "#e9a23b", "#f6dfae", "#f8ecd7")),
        other => {
            let weaves = [TWILL, HERRINGBONE, HOUNDSTOOTH, BASKET];
            let sum: usize = other.bytes().map(usize::from).sum();
            (weaves[sum % weaves.len()], palette("#2b3a67", "#b8c0d9", "#f3c677", "#e9ebf3"))
        }
    }
}

/// A picture of a product.
pub(super) fn drawing(id: &str, category: &str) -> String {
    let (weave, colours) = cloth(id);
    let tile = THREADS * WIDTH;
    let cloth = format!("url(#cloth-{})", Text(id));
    format!(
        r##"<svg class="art" viewBox="0 0 400 300" role="img" aria-label="{label}"><defs><pattern id="cloth-{label}" width="{tile}" height="{tile}" patternUnits="userSpaceOnUse" patternTransform="scale(.75)">{threads}</pattern><linearGradient id="light" x1="0" y1="0" x2="1" y2="1"><stop offset="0" stop-color="#fff" stop-opacity=".34"/><stop offset=".5" stop-color="#fff" stop-opacity="0"/><stop offset="1" stop-color="#000" stop-opacity=".28"/></linearGradient></defs><rect width="400" height="300" fill="{wall}"/><ellipse cx="200" cy="262" rx="130" ry="12" fill="#000" opacity=".1"/>{shape}{light}</svg>"##,
        label = Text(id),
        threads = threads(weave, &colours),
        wall = colours.wall,
        shape = shape(category, &cloth, &colours),
        light = outline(category, "url(#light)"),
    )
}

/// The part of a weave that repeats, as one path per colour.
fn threads(weave: Weave, colours: &Palette) -> String {
    let mut paths: [String; 3] = Default::default();
    for y in 0..THREADS {
        for x in 0..THREADS {
            let colour = if (weave.warp_on_top)(x, y) { weave.warp[x] } else { weave.weft[y] };
            let _ = write!(paths[colour], "M{} {}h{WIDTH}v{WIDTH}h-{WIDTH}z", x * WIDTH, y * WIDTH);
        }
    }
    let mut svg = String::new();
    for (path, colour) in paths.iter().zip(colours.threads) {
        if !path.is_empty() {
            let _ = write!(svg, r#"<path fill="{colour}" d="{path}"/>"#);
        }
    }
    svg
}

/// The thing itself: its outline in cloth, with what belongs around it.
fn shape(category: &str, cloth: &str, colours: &Palette) -> String {
    let [first, second, accent] = colours.threads;
    let body = outline(category, cloth);
    match category {
        "blanket" => format!(
            r##"<path d="{}" stroke="{second}" stroke-width="3"/>{body}<path d="M96 146h208M96 198h208" stroke="#000" stroke-opacity=".18" stroke-width="3"/>"##,
            fringe((100, 248), (10, 0), 21, (0, 16)),
        ),
        "scarf" => format!(
            r##"<path d="M104 58H296" stroke="#a9876a" stroke-width="9" stroke-linecap="round"/><path d="{}{}" stroke="{first}" stroke-width="3"/>{body}"##,
            fringe((141, 245), (7, 0), 8, (0, 16)),
            fringe((209, 223), (7, 0), 8, (0, 16)),
        ),
        "rug" => format!(
            r#"<path d="{}{}" stroke="{second}" stroke-width="3"/>{body}"#,
            fringe((84, 104), (-2, 11), 13, (-18, 0)),
            fringe((340, 104), (-2, 11), 13, (18, 0)),
        ),
        "tote" => format!(
            r#"<path d="M148 120C148 36 252 36 252 120" fill="none" stroke="{accent}" stroke-width="11" stroke-linecap="round"/>{body}"#
        ),
        _ => body,
    }
}

/// The outline of a thing, filled.
fn outline(category: &str, fill: &str) -> String {
    let path = match category {
        "blanket" => {
            "M108 94H292Q304 94 304 106V138Q304 146 300 146Q304 146 304 154V190Q304 198 300 198Q304 198 304 206V238Q304 250 292 250H108Q96 250 96 238V206Q96 198 100 198Q96 198 96 190V154Q96 146 100 146Q96 146 96 138V106Q96 94 108 94Z"
        }
        "scarf" => "M138 82Q138 58 162 58H238Q262 58 262 82V224H206V102Q206 98 200 98T194 102V246H138Z",
        "rug" => "M88 96H344L316 244H56Z",
        "tote" => "M112 116H288L304 252Q304 262 294 262H106Q96 262 96 252Z",
        _ => {
            "M112 76Q200 98 288 76Q314 68 308 94Q292 160 308 228Q314 254 288 246Q200 226 112 246Q86 254 92 228Q108 160 92 94Q86 68 112 76Z"
        }
    };
    format!(r#"<path d="{path}" fill="{fill}" fill-rule="evenodd"/>"#)
}

/// Loose ends: lines of one length, each a step further.
fn fringe(from: (i32, i32), step: (i32, i32), count: i32, length: (i32, i32)) -> String {
    let mut path = String::new();
    for n in 0..count {
        let _ = write!(path, "M{} {}l{} {}", from.0 + n * step.0, from.1 + n * step.1, length.0, length.1);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product;

    #[test]
    fn every_product_has_a_picture_of_its_own() {
        let all: std::collections::BTreeSet<String> = product::ids().map(|id| drawing(id, "rug")).collect();
        assert_eq!(all.len(), product::ids().count());
        assert!(all.iter().all(|svg| svg.len() < 8192), "pages stay small");
    }
}
