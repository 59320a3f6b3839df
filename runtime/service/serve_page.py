"""The status page: one HTML document without a build step or anything from outside. It polls `/status.json`."""

from __future__ import annotations

_STYLE = """
:root { --ink:#1d2733; --soft:#66758a; --line:#e3e8ef; --card:#fff; --page:#f4f6f9; --blue:#2f6fde; --teal:#16a394; --amber:#d98a1c; --red:#d2453b; --green:#2c9a57; --grey:#8793a4 }
@media (prefers-color-scheme: dark) { :root { --ink:#e6ebf2; --soft:#93a1b5; --line:#2b3543; --card:#1a222d; --page:#121821 } }
* { box-sizing:border-box } body { margin:0; background:var(--page); color:var(--ink); font:14px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif }
header { display:flex; align-items:center; gap:14px; flex-wrap:wrap; padding:16px 24px } h1 { font-size:18px; margin:0 8px 0 0; letter-spacing:-.01em }
.pill { padding:3px 12px; border-radius:99px; color:#fff; background:var(--grey); font-weight:600; text-transform:capitalize }
.fact { color:var(--soft) } .fact b { color:var(--ink); font-weight:600; font-variant-numeric:tabular-nums } .right { margin-left:auto; display:flex; gap:8px }
button { font:inherit; padding:5px 12px; border:1px solid var(--line); border-radius:8px; background:var(--card); color:var(--ink); cursor:pointer } button:disabled { opacity:.4; cursor:default }
#faults { margin:0 24px; } #faults div { background:var(--red); color:#fff; padding:8px 14px; border-radius:8px; margin-bottom:8px }
main { display:grid; grid-template-columns:repeat(3, minmax(0, 1fr)); gap:16px; padding:0 24px 24px }
section { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:14px 16px } section.wide { grid-column:span 2 } @media (max-width:1000px) { main { grid-template-columns:minmax(0, 1fr) } section.wide { grid-column:auto } }
.two { display:grid; grid-template-columns:1fr 1fr; gap:0 28px }
h2 { font-size:12px; margin:0 0 10px; color:var(--soft); text-transform:uppercase; letter-spacing:.06em; font-weight:600 }
.cameras { display:flex; gap:12px } .cameras figure { margin:0; flex:1; min-width:0 } .cameras img { width:100%; aspect-ratio:4/3; max-height:340px; object-fit:contain; background:#0b0f14; border-radius:8px; display:block } figcaption { color:var(--soft); margin-top:4px; display:flex; justify-content:space-between }
.row { display:grid; grid-template-columns:112px 1fr 76px; gap:10px; align-items:center; padding:3px 0 } #reasons .row, #verdicts .row, #chunks .row, #refused .row { grid-template-columns:168px 1fr 52px } .row span { color:var(--soft); white-space:nowrap; overflow:hidden; text-overflow:ellipsis } .row b { font-weight:600; text-align:right; white-space:nowrap; font-variant-numeric:tabular-nums }
.track { position:relative; height:8px; border-radius:4px; background:var(--line) } .track i { position:absolute; top:0; bottom:0; left:0; border-radius:4px; background:var(--blue) } .track u { position:absolute; top:-3px; width:3px; height:14px; border-radius:2px; background:var(--amber) } .track em { position:absolute; top:-1px; width:10px; height:10px; margin-left:-5px; border-radius:50%; background:var(--blue) }
.legend { color:var(--soft); font-size:12px; margin-top:8px } .legend i { display:inline-block; width:10px; height:10px; border-radius:50%; margin:0 4px 0 10px }
svg { width:100%; height:110px; display:block } .big { font-size:26px; font-weight:600; font-variant-numeric:tabular-nums; letter-spacing:-.02em } .pair { display:flex; gap:26px; margin-bottom:6px } .pair div span { display:block; color:var(--soft); font-size:12px; font-weight:400; letter-spacing:0; line-height:1.6 } .pair .big b { line-height:1.1 } .right { align-items:center }
.none { color:var(--soft) }
@media (max-width:640px) {
  header, main { padding:12px } .right { margin-left:0; flex-wrap:wrap } .pair { flex-wrap:wrap; gap:10px 22px } .two { grid-template-columns:minmax(0, 1fr) } .two div + div { margin-top:10px }
  .row, #reasons .row, #verdicts .row, #chunks .row, #refused .row { grid-template-columns:minmax(0, 130px) minmax(0, 1fr) 68px }
}
"""

_SCRIPT = """
const $ = id => document.getElementById(id), token = location.hash.startsWith('#token=') ? location.hash.slice(7) : '';
const headers = token ? {Authorization: 'Bearer ' + token} : {};
const colours = {moving:'--green', planning:'--blue', hold:'--amber', parking:'--teal', fault:'--red', disarmed:'--grey'};
const similarity = [], delays = []; let lease = '', seen = null;
const number = (v, digits = 1) => v == null ? '–' : Number(v).toFixed(digits);
function make(tag, text, className) { const e = document.createElement(tag); if (text != null) e.textContent = text; if (className) e.className = className; return e }
function rows(id, entries, empty) {
  const box = $(id); box.replaceChildren();
  if (!entries.length) { box.append(make('div', empty, 'none')); return }
  for (const [name, share, text, marks] of entries) {
    const row = make('div', null, 'row'), track = make('div', null, 'track');
    for (const [tag, at] of marks || [['i', null]]) {
      const mark = make(tag), place = Math.max(0, Math.min(1, at == null ? share : at)) * 100 + '%';
      mark.style[at == null ? 'width' : 'left'] = place; track.append(mark);
    }
    row.append(make('span', name), track, make('b', text)); box.append(row);
  }
}
function line(id, values, floor, threshold) {
  const svg = $(id), w = 600, h = 90, known = values.filter(v => v != null), make = (tag, at) => { const e = document.createElementNS('http://www.w3.org/2000/svg', tag); for (const k in at) e.setAttribute(k, at[k]); return e };
  svg.setAttribute('viewBox', `0 0 ${w} ${h}`); svg.setAttribute('preserveAspectRatio', 'none'); svg.replaceChildren();
  if (!known.length) return;
  let low = Math.min(...known, threshold ?? Infinity), high = Math.max(...known, threshold ?? -Infinity); if (floor != null) low = Math.min(low, floor);
  const pad = (high - low) * .12 || Math.abs(high) * .05 || 1, y = v => h - 6 - (v - low + pad / 2) / (high - low + pad) * (h - 12);
  if (threshold != null) svg.append(make('line', {x1:0, x2:w, y1:y(threshold), y2:y(threshold), stroke:'var(--amber)', 'stroke-dasharray':'6 5', 'stroke-width':2, 'vector-effect':'non-scaling-stroke'}));
  const points = values.map((v, i) => v == null ? null : `${i * w / Math.max(1, values.length - 1)},${y(v)}`).filter(Boolean);
  svg.append(make('polyline', {points: points.join(' '), fill:'none', stroke:'var(--blue)', 'stroke-width':2, 'stroke-linejoin':'round', 'vector-effect':'non-scaling-stroke'}));
}
function counted(table) { const all = Object.entries(table || {}).filter(e => e[1]), most = Math.max(1, ...all.map(e => e[1])); return all.sort((a, b) => b[1] - a[1]).map(([k, v]) => [k.replaceAll('_', ' '), v / most, String(v)]) }
function show(s) {
  const c = s.control, i = s.inference, own = s.serve, cache = i ? i.cache : own, last = (i && i.last) || own.last || {}, stages = i ? i.stages_ms : own.stages_ms;
  const state = c && c.alive ? c.state : 'no robot'; $('state').textContent = state; $('state').style.background = `var(${colours[state] || '--grey'})`;
  $('tick').textContent = c ? c.tick : '–'; $('hz').textContent = c ? number(c.hz, 0) : '–'; $('missed').textContent = c ? c.missed : '–';
  $('ready').textContent = own.ready ? 'ready' : 'warming up'; $('cold').textContent = number(own.cold_start_s) + ' s';
  $('faults').replaceChildren(...s.faults.map(f => make('div', f)));
  rows('joints', c && c.positions ? s.joints.map((name, k) => [name.replaceAll('_', ' '), 0, number(c.positions[k]), [['em', c.present[k] / 4095], ['u', c.goals[k] / 4095]]]) : [], 'no control process in this run folder');
  const order = ['prepare', 'vision', 'prefix', 'state', 'flow', 'total'].filter(k => stages && stages[k]), most = Math.max(1e-9, ...order.map(k => stages[k].p99));
  rows('stages', order.map(k => [k, stages[k].p50 / most, number(stages[k].p50) + ' ms', [['i', null], ['u', stages[k].p99 / most]]]), 'nothing was inferred yet');
  if (last.time_ns !== seen) { seen = last.time_ns; similarity.push(last.similarity ?? null); delays.push(last.ms ? last.ms.total : null); for (const list of [similarity, delays]) if (list.length > 120) list.shift() }
  const threshold = (i || own).threshold; line('similarity', similarity, null, threshold); line('delay', delays, 0, null);
  const newest = similarity.filter(v => v != null).at(-1); $('sim').textContent = number(newest, 5); $('threshold').textContent = threshold == null ? 'not calibrated' : number(threshold, 5); $('verdict').textContent = (last.verdict || '–').replaceAll('_', ' '); $('reason').textContent = (last.reason || '–').replaceAll('_', ' ');
  $('hits').textContent = cache.hits ?? 0; $('misses').textContent = cache.misses ?? cache.inferences - cache.hits; $('inferences').textContent = cache.inferences; rows('reasons', counted(cache.reasons), 'no inference yet');
  $('late').textContent = c ? number(c.late_ns / 1e6, 2) + ' ms' : '–'; $('bus').textContent = c ? number(c.io_ns / 1e6, 2) + ' ms' : '–'; $('age').textContent = c && c.age_ns >= 0 ? number(c.age_ns / 1e6, 0) + ' ms' : '–';
  rows('chunks', c ? counted(c.chunks) : [], 'no chunk yet'); rows('verdicts', c ? counted(c.verdicts) : [], 'the guard had nothing to do');
  $('sessions').textContent = own.sessions; $('served').textContent = own.inferences; rows('refused', counted(own.refused), 'nothing was refused');
  $('take').textContent = lease ? 'Give back' : 'Take control'; $('holder').textContent = lease ? 'you hold the control lease' : s.lease ? 'held by ' + s.lease : 'read-only'; for (const b of document.querySelectorAll('[data-word]')) b.disabled = !lease;
  cameras(s.cameras);
}
const pictures = {};
function cameras(ages) {
  const names = Object.keys(ages); $('nocamera').hidden = names.length > 0;
  for (const name of Object.keys(pictures)) if (!(name in ages)) { pictures[name].caption.parentNode.remove(); delete pictures[name] }
  for (const name of names) {
    if (!pictures[name]) { const figure = make('figure'), image = make('img'), caption = make('figcaption'); image.alt = name; caption.append(make('span', name), make('span')); figure.append(image, caption); $('cameras').append(figure); pictures[name] = {image, caption, busy:false} }
    const p = pictures[name]; p.caption.lastChild.textContent = number(ages[name] * 1e3, 0) + ' ms old'; if (p.busy) continue; p.busy = true;
    fetch(`camera/${encodeURIComponent(name)}.jpg`, {headers}).then(r => r.ok ? r.blob() : null).then(b => { if (b) { const old = p.image.src; p.image.src = URL.createObjectURL(b); if (old) URL.revokeObjectURL(old) } }).catch(() => {}).finally(() => p.busy = false);
  }
}
async function poll() {
  try { const r = await fetch('status.json', {headers}); if (!r.ok) throw new Error((await r.json()).error); show(await r.json()) }
  catch (e) { $('state').textContent = 'no answer'; $('state').style.background = 'var(--grey)'; $('faults').replaceChildren(make('div', 'the service does not answer: ' + e.message)) }
  if (lease) { const r = await fetch('lease', {method:'PUT', headers:{...headers, 'X-Lease':lease}}).catch(() => null); if (!r || !r.ok) lease = '' }
  setTimeout(poll, 250);
}
async function ask(method, path) {
  try { const r = await fetch(path, {method, headers:{...headers, 'X-Lease':lease}}), body = await r.json(); if (!r.ok) alert(body.error || body.answer + ' ' + body.reason); return r.ok ? body : null }
  catch (e) { alert('the service does not answer: ' + e.message); return null }
}
$('take').onclick = async () => { if (lease) { await ask('DELETE', 'lease'); lease = '' } else lease = (await ask('POST', 'lease') || {lease: ''}).lease };
for (const b of document.querySelectorAll('[data-word]')) b.onclick = () => ask('POST', 'control/' + b.dataset.word);
poll();
"""

_BODY = """
<header><h1>vla-edge</h1><span id="state" class="pill">…</span>
<span class="fact">tick <b id="tick">–</b></span><span class="fact"><b id="hz">–</b> Hz</span><span class="fact">missed <b id="missed">–</b></span>
<span class="fact">service <b id="ready">…</b>, cold start <b id="cold">–</b></span>
<span class="right"><span class="fact" id="holder"></span><button id="take">Take control</button><button data-word="arm" disabled>Arm</button><button data-word="hold" disabled>Hold</button><button data-word="park" disabled>Park</button><button data-word="stop" disabled>Stop</button></span></header>
<div id="faults"></div>
<main>
<section class="wide"><h2>Cameras</h2><div class="cameras" id="cameras"></div><div class="none" id="nocamera">no inference process shows pictures in this run folder</div></section>
<section><h2>Joints</h2><div id="joints"></div><div class="legend"><i style="background:var(--blue)"></i>present <i style="background:var(--amber);border-radius:2px;width:4px"></i>goal; servo counts 0 to 4095, value in joint units</div></section>
<section><h2>Stage latencies</h2><div id="stages"></div><div class="legend"><i style="background:var(--blue)"></i>median <i style="background:var(--amber);border-radius:2px;width:4px"></i>p99 of the last 500</div><svg id="delay"></svg></section>
<section><h2>Gate</h2><div class="pair"><div class="big"><span>similarity</span><b id="sim">–</b></div><div><span>threshold</span><b id="threshold">–</b></div><div><span>verdict</span><b id="verdict">–</b></div><div><span>reason</span><b id="reason">–</b></div></div><svg id="similarity"></svg><div class="legend"><i style="background:var(--blue)"></i>of each computed prefix <i style="background:var(--amber);border-radius:2px;width:12px;height:3px;vertical-align:middle"></i>threshold</div></section>
<section><h2>Prefix cache</h2><div class="pair"><div class="big"><span>hits</span><b id="hits">0</b></div><div class="big"><span>misses</span><b id="misses">0</b></div><div class="big"><span>inferences</span><b id="inferences">0</b></div></div><div id="reasons"></div></section>
<section class="wide"><h2>Control</h2><div class="pair"><div><span>start late</span><b id="late">–</b></div><div><span>bus time</span><b id="bus">–</b></div><div><span>age of the plan</span><b id="age">–</b></div></div><div class="two"><div><h2>Chunks</h2><div id="chunks"></div></div><div><h2>Guard</h2><div id="verdicts"></div></div></div></section>
<section><h2>Clients</h2><div class="pair"><div class="big"><span>sessions</span><b id="sessions">0</b></div><div class="big"><span>inferences</span><b id="served">0</b></div></div><h2>Refused</h2><div id="refused"></div></section>
</main>
"""

PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
    'initial-scale=1">'
    '<title>vla-edge</title><link rel="icon" '
    f'href="data:,"><style>{_STYLE}</style></head><body>{_BODY}<script>{_SCRIPT}</script></body></html>'
)
