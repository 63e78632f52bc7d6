//! What the controller is measured on.

mod placement;
mod server;

use placement::Row;

fn main() {
    if server::is_restart() {
        return;
    }
    let data = placement::data();
    let mut rows = placement::rates();
    rows.push(placement::topology(&data, placement::Sequence::C1));
    rows.push(placement::topology(&data, placement::Sequence::C2));
    rows.push(placement::openb(&data));
    rows.extend(server::rows());
    println!("| what | ours | peer | unit | note |");
    println!("|---|---:|---:|---|---|");
    for Row { name, ours, peer, unit, note } in rows {
        let peer = peer.map_or_else(String::new, |peer| format!("{peer:.0}"));
        let digits = if ours < 100.0 { 2 } else { 0 };
        println!("| {name} | {ours:.digits$} | {peer} | {unit} | {note} |");
    }
}
