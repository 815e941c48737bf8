# SPDX-License-Identifier: GPL-2.0-or-later
"""The table as text, and the picture."""
from html import escape

from targets import limit, of_pairs, verdict

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0",
           "#1f7a8c", "#bf4342", "#7f8f2c", "#5e3c99")


def text_table(workload, peers):
    ours = peers.get("rowsnap")
    lines = [workload.title,
             f"  {'':<30} {'median/s':>9} {'least':>9} {'most':>9} {'rowsnap is':>10} {'CPU us':>7} {'peak MiB':>8}"
             f" {'disk I/Os':>9} {'flushes':>8}"]
    for name, peer in peers.items():
        versus = f"{of_pairs(ours, peer):.2f} x" if ours and name != "rowsnap" else ""
        cpu = f"{peer['cpu_us']:.1f}" if peer.get("cpu_us") is not None else ""
        peak = f"{peer['peak_bytes'] / (1 << 20):.0f}" if peer.get("peak_bytes") else ""
        ios = f"{peer['device'][0] + peer['device'][1]:.2f}" if peer.get("device") else ""
        flushes = f"{peer['device'][2]:.3f}" if peer.get("device") else ""
        lines.append(f"  {name:<30} {peer['rate']:>9.0f} {peer['least']:>9.0f} {peer['most']:>9.0f} {versus:>10}"
                     f" {cpu:>7} {peak:>8} {ios:>9} {flushes:>8}")
    rowsnap = peers.get("rowsnap", {})
    if rowsnap.get("limit"):
        lines.append(f"  {'the disk, doing the same':<30} {rowsnap['limit']:>9.0f} {'':>9} {'':>9}"
                     f" {limit({workload.name: peers}, workload.name):>8.2f} x")
    counters = rowsnap.get("counters")
    if counters and counters["writes"] and counters["blocks"]:
        lines.append(counter_line(counters, rowsnap["bytes"]))
    return "\n".join(lines)


def counter_line(counters, client_bytes):
    """For each write of a client: disk requests, bytes, barriers; and the kernel's count of the bytes beside ours."""
    writes = counters["writes"]
    ios = counters["copies"] + counters["store_writes"] + writes
    moved = counters["written_bytes"] + counters["store_bytes"] + counters["zeroed_bytes"]
    kernel = counters["kernel_write_bytes"]
    return (f"  rowsnap, for each write: {ios / writes:.2f} disk requests, {counters['barriers'] / writes:.3f} barriers, "
            f"{moved / writes:.0f} bytes written; the kernel counted {kernel / moved:.3f} of our count of these")


def target_table(targets):
    lines = ["Targets"]
    for target in targets:
        what, kind, wanted, measured = target
        shown = "-" if measured is None else f"{measured:.2f}" if measured < 1000 else f"{measured:.0f}"
        lines.append(f"  {what:<78} {kind} {wanted:<6} {shown:>9}  {verdict(target)}")
    return "\n".join(lines)


def picture(workloads, results, heading):
    """An SVG: a bar for each peer, each workload in its own scale; the whiskers are the least and the most."""
    width, left, bar, gap = 900, 250, 15, 34
    shapes, y = [], 60
    names = list(dict.fromkeys(name for peers in results.values() for name in peers))
    for workload in workloads:
        peers = results.get(workload.name)
        if not peers:
            continue
        shapes.append(f'<text x="10" y="{y}" class="title">{escape(workload.title)}</text>')
        y += 8
        top = max(max(peer["most"], peer.get("limit") or 0) for peer in peers.values())
        unit = (width - left - 110) / top
        for name, peer in peers.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            middle, length = y + bar / 2, peer["rate"] * unit
            shapes.append(f'<text x="{left - 8}" y="{y + bar - 3}" class="name">{escape(name)}</text>')
            shapes.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" fill="{colour}"/>')
            shapes.append(f'<path d="M{left + peer["least"] * unit:.1f} {middle}H{left + peer["most"] * unit:.1f}"/>')
            end = max(peer["most"], peer.get("limit") or 0) * unit
            shapes.append(f'<text x="{left + end + 6:.1f}" y="{y + bar - 3}">'
                          f'{peer["rate"]:,.0f} /s</text>')
            if peer.get("limit"):
                at = left + peer["limit"] * unit
                shapes.append(f'<path d="M{at:.1f} {y - 2}V{y + bar}" class="limit"/>')
            y += bar
        y += gap
    style = ("text{font:11px sans-serif;fill:#222}.title{font-weight:bold;font-size:12px}.name{text-anchor:end}"
             "path{stroke:#222;fill:none}.limit{stroke:#c00;stroke-width:2}.head{font-size:15px;font-weight:bold}")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}">'
            f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
            f'<text x="10" y="22" class="head">{escape(heading)}</text>'
            f'<text x="10" y="38">operations a second, medians; lines: least to most; red: the disk doing the same</text>'
            + "\n".join(shapes) + "</svg>\n")
