//! A file that is read piece by piece says what it says as a whole, to the letter.

use proptest::prelude::*;

use crate::config::diagnostic::Report;
use crate::config::tests::{EXAMPLE, GOOD, GOOD_HTTP};
use crate::config::toml::pieces;
use crate::config::toml::read::read_in_pieces;

/// What is read of a text in shares and pieces of these sizes, with the places of everything, and what is said of it.
fn read(text: &str, share: usize, size: usize) -> String {
    let mut report = Report::default();
    let draft = read_in_pieces(text, share, size, &mut report);
    format!("{draft:#?}\n{:#?}", report.finish("snisplice.toml", text))
}

fn check(text: &str) {
    let whole = read(text, usize::MAX, usize::MAX);
    for (share, size) in
        [(usize::MAX, 1), (usize::MAX, 50), (usize::MAX, 300), (text.len() / 2, 1), (100, 30)]
    {
        assert!(read(text, share, size) == whole, "in shares of {share} and pieces of {size} bytes: {text}");
    }
}

/// How many pieces of any size are read; `None`: it takes the whole.
fn pieces_of(text: &str) -> Option<usize> {
    let mut pieces = 0;
    pieces::each(text, 1, |_, _| pieces += 1).map(|()| pieces)
}

#[test]
fn every_list_table_can_begin_a_piece() {
    // The first is what precedes them.
    assert_eq!(pieces_of(EXAMPLE), Some(5));
    assert_eq!(pieces_of(GOOD), Some(4));
    assert_eq!(pieces_of(GOOD_HTTP), Some(4));
    assert_eq!(pieces_of(&GOOD.replace('\n', "\r\n  ")), Some(4));
    assert_eq!(
        pieces_of(&format!("{GOOD}[gateway]\nworkers = 1\n[[route]]\n[route.certificate]\nkey = 'k'")),
        Some(5)
    );
    let text = GOOD.repeat(2000);
    let mut pieces = 0;
    pieces::each(&text, pieces::SIZE, |_, _| pieces += 1).expect("all of it is TOML");
    assert!((2..=text.len() / pieces::SIZE + 1).contains(&pieces), "{pieces}");
}

#[test]
fn whatever_belongs_together_is_read_together() {
    for text in [
        "",
        "\u{feff}[gateway]\nworkers = 5000\n[[pool]]\nname = 1\n",
        "[gateway]\nworkers = 1\n[[pool]]\n[gateway]\nworkers = 2\n[[pool]]\n",
        "[[pool]]\n[[listener]]\n[gateway.keepalive]\nidle = '1s'\n[[pool]]\n[gateway]\nspeed = 1\n",
        "[[route]]\n[[pool]]\n[route.certificate]\nchain = 'a'\nkey = 1\n[[route]]\n[route.certificate]\n",
        "route = [{ name = 'a' }]\n[[route]]\nname = 'b'\n",
        "route = [[1]]\n[[route]]\nname = 'b'\n",
        "route = []\n[[pool]]\n[[route]]\n",
        "gateway = { workers = 1 }\n[[pool]]\n[gateway]\n",
        "[route]\nname = 'a'\n[[pool]]\n[[route]]\n[pool]\n",
        "[[route]]\nname = 'a'\n[[route.sni]]\n[[\"route\"]]\nname = 'a'\n[[ pool ]]\nspeed = 1\n",
        "[[route]]\nsni = [\n[[route]]\n]\n[[pool]]\nname = 5\n",
        "[[route]]\nname = \"\"\"\n[[route]]\n\"\"\"\n[[pool]]\nname = 5\n",
        "[[route]]\nname = \"\"\"\n[[route]]\nname = 5\n[[pool]]\nname = 5\n",
        "[[pool]]\nservers = ['a'\n[[pool]]\nname = 5\n[[route]]\nname = 6\n",
        "[[pool]]\nname = 'a'\nname = 'b'\n[[pool]]\nname = 1\n[[pool]\nname = 2\n[[pools]]\n",
        "[[pool]]\nname = 1\n[other]\n[[route]]\nname = 1\nsnii = []\nlistener = 'é'\n# é\n[[route]]\ntls = 'Terminate'",
        "[[route]]\n[[route.rule]]\nname = 1\n[[pool]]\n [[ route . rule ]]\nname = 2\n[[route]]\n[[route.rule]]\n",
        "# \u{1}\n[[pool]]\n# \u{1}\n[[pool]]\nname = 1 [[pool]]\n",
    ] {
        check(text);
    }
    check(EXAMPLE);
    check(&EXAMPLE.replace('\n', "\r\n"));
    check(&EXAMPLE.replace("\"", "'"));
}

proptest! {
    #[test]
    fn no_damage_makes_a_difference(
        damage in prop::collection::vec((0usize..2400, 0usize..40, "[\\[\\]{}=\"',.#*a-z0-9é \r\n]{0,3}"), 1..4),
    ) {
        let mut text = EXAMPLE.to_owned();
        for (at, length, insert) in damage {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            if text.is_char_boundary(at) && text.is_char_boundary(end) {
                text.replace_range(at..end, &insert);
            }
        }
        check(&text);
    }
}
