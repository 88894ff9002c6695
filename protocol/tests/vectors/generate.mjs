// Writes job_ids.jsonl and json.jsonl: what a JavaScript engine makes of odd JSON and odd definitions.
// Run `node generate.mjs` in this folder (Node 18 or newer, nothing to install). The seed is fixed; the output is ASCII.
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';

// --- the rules, written down a second time -----------------------------------------------------------------------

const PLAIN = ['v', 'image', 'command', 'entrypoint', 'workdir', 'shmSize', 'maxDuration', 'tags'];
const BUILD = ['context', 'buildContext', 'filename', 'target', 'dockerfile', 'buildArgs', 'platform'];
const REQUIREMENTS = ['cpus', 'gpus', 'maxDuration', 'memory'];
const FOREIGN = /^mp[-_]|^(channel|CHANNEL|readonly|edit|parent-metapage-id|fs-path)$/;
const STORAGE = 'https://metaframe-asman-test.s3.us-west-1.amazonaws.com';

const canonical = (value) => {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (value === null || typeof value !== 'object') return JSON.stringify(value);
  const members = Object.keys(value).sort().filter((key) => value[key] !== undefined);
  return `{${members.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(',')}}`;
};

// Without a prototype even `__proto__` is a key like any other.
const record = (entries) => {
  const out = Object.create(null);
  for (const [key, value] of entries) out[key] = value;
  return out;
};
const own = (value, key) => (Object.hasOwn(Object(value), key) ? value[key] : undefined);
const pick = (value, keys) =>
  keys.map((key) => [key, own(value, key)]).filter(([, part]) => part !== null && part !== undefined);
const entries = (value) => Object.keys(value ?? {}).map((key) => [key, value[key]]);

const stableUrl = (address) => {
  if (address.includes('/presignedurl/')) return address.split('/presignedurl/')[0];
  if (!address.startsWith(STORAGE)) return address;
  const url = new URL(address);
  url.search = '';
  url.hash = '';
  return url.href;
};

const reducedRef = (ref) => {
  const type = own(ref, 'type');
  let value = own(ref, 'value');
  if (type === 'url' && typeof value === 'string') value = stableUrl(value);
  return record([['value', value], ...pick(ref, ['type'])]);
};

const hashed = (definition) => {
  const groups = [
    ['build', pick(own(definition, 'build'), BUILD)],
    ['requirements', pick(own(definition, 'requirements'), REQUIREMENTS)],
    ['env', entries(own(definition, 'env')).filter(([key]) => !FOREIGN.test(key))],
    ['inputs', entries(own(definition, 'inputs')).map(([name, ref]) => [name, reducedRef(ref)])],
    ['configFiles', entries(own(definition, 'configFiles')).map(([name, ref]) => [name, reducedRef(ref)])],
  ];
  const full = groups.filter(([, part]) => part.length > 0).map(([key, part]) => [key, record(part)]);
  return record([...pick(definition, PLAIN), ...full]);
};

// --- chance with a seed --------------------------------------------------------------------------------------------

let seed = 0x67726964;
const random = () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};
const below = (n) => Math.floor(random() * n);
const one = (list) => list[below(list.length)];
const some = (n, make) => Array.from({ length: below(n + 1) }, make);

const bits = new DataView(new ArrayBuffer(8));
const randomDouble = () => {
  for (;;) {
    bits.setUint32(0, below(2 ** 32));
    bits.setUint32(4, below(2 ** 32));
    if (Number.isFinite(bits.getFloat64(0))) return bits.getFloat64(0);
  }
};

// --- odd things, as JSON text ------------------------------------------------------------------------------------

const NUMBERS = [
  '0', '-0', '-0.0', '0e99999999999999999999', '1.0', '1.50', '1e0', '1E+2', '1e-2', '1e20', '1e21', '-1e21', '123456789012345680000',
  '999999999999999900000', '1e-6', '1e-7', '0.000001', '0.0000001', '1.5e-7', '5e-324', '4.9e-324', '2.4703282292062327e-324',
  '2.4703282292062328e-324', '1e-400', '-1e-400', '1.7976931348623157e308', '1.7976931348623158e308', '1.7976931348623159e308', '1e309',
  '-1e400', '1e99999999999999999999', '2.2250738585072014e-308', '2.2250738585072011e-308', '9007199254740991', '9007199254740992',
  '9007199254740993', '9007199254740994.999', '-9007199254740993', '18446744073709551615', '0.1', '0.30000000000000004',
  '0.1e1', '100e-2', '1234567890123456789012', '12345678901234567890', '0.00001234', '1.2345e25', '4.35', '0.1000000000000000055511151231257827',
  '8.41e21', '2e-44', '9.5367431640625e-7', '5e-5', '123e-20', '1e23', '9.999999999999999e22', '100000000000000000000', '1.0000000000000002',
];
const CHARS = [
  '\\u0000', '\\u0001', '\\b', '\\t', '\\n', '\\u000b', '\\f', '\\r', '\\u001F', ' ', '\\"', '\\\\', '\\/', '/', '\\u0041', '\u007f', '\u0085',
  '\u00e9', '\\u00e9', '\u2028', '\\u2029', '\ufeff', '\ufffd', '\\uffff', '\ue000', '\\uE000', '\u{1f600}', '\\ud83d\\ude00', '\\uD83D\\uDE00',
  '\u{10ffff}', '\\ud800', '\\udfff', '\\udc00\\ud800', '\\ud800x', '\\ud800\\u0041', '\\ud800\\ud800\\udc00', "'", '<', '&', '`', '${A}',
  'a', 'B', '0', '9', '-', '_',
];
const KEYS = [
  '10', '9', '2', '1', '0', '01', '-1', '1.5', '4294967294', '4294967295', '4294967296', '9007199254740993', '1e3', '', ' ', 'a', 'A', 'Z', 'b',
  '__proto__', 'constructor', 'toString', 'length', '\u{1f600}', '\\ud83d\\ude00', '\ue000', '\uffff', '\\ud800', '\\udfff', '\u00e9', 'e\u0301', '\\u0061',
  '\\n', 'mp-x', 'mp_x', 'MP_x', 'mpx', 'xmp-', 'channel', 'CHANNEL', 'Channel', 'readonly', 'edit', 'parent-metapage-id', 'fs-path', 'fs_path',
];
const SPACE = ['', '', '', ' ', '\\n', '\\t\\r\\n '].map((text) => JSON.parse(`"${text}"`));

// Exactly between two shortest decimals: the even one is written.
const tie = () => {
  const places = 1 + below(10);
  const whole = BigInt(Math.floor(2 ** (52.9 - places - below(4)) * (0.5 + random() / 2)));
  return `${whole}.${String((2 * below(2 ** (places - 1)) + 1) * 5 ** places).padStart(places, '0')}`;
};
const number = () => (random() < 0.1 ? tie() : random() < 0.6 ? one(NUMBERS) : random() < 0.5 ? String(randomDouble()) : randomDouble().toExponential(below(21)));
const string = () => `"${some(6, () => one(CHARS)).join('')}"`;
const member = (key, value) => `${one(SPACE)}"${key}"${one(SPACE)}:${one(SPACE)}${value}${one(SPACE)}`;
const object = (n, key, value) => `{${some(n, () => member(key(), value())).join(',')}}`;
const anything = (depth) => {
  const kind = below(depth > 0 ? 9 : 6);
  if (kind < 2) return number();
  if (kind < 4) return string();
  if (kind < 6) return one(['true', 'false', 'null', '""']);
  if (kind < 7) return `[${some(4, () => anything(depth - 1)).join(',')}]`;
  return object(5, () => one(KEYS), () => anything(depth - 1));
};
const nested = (depth) => (random() < 0.5 ? '['.repeat(depth) + ']'.repeat(depth) : '{"a":'.repeat(depth) + '1' + '}'.repeat(depth));

// --- odd definitions ---------------------------------------------------------------------------------------------

const URLS = [
  'https://h/f/abc', 'https://h/f/abc?x=1#y', 'https://h/f/abc/presignedurl/zzz?x=1', '/presignedurl/', 'x/presignedurl/y/presignedurl/z',
  'https://h/\\ud800/presignedurl/q', `${STORAGE}/presignedurl/a?b`, 'https://h/PresignedUrl/a',
  ...['', '/', '/a', '/a?x=1', '/a#f', '?x', '#x', '/a b', '/a b ?x', '/a?x ', ' ', '/\u00e9\u{1f600}', '/%zz%41', '/a/../b', '/a/./b/.', '/a/..', '/..',
    '/%2e%2E/x', '/.%2e', '//a//..//', '\\\\a\\\\b', '/a\\tb\\nc', ':443/a', ':/a', ':8443/a', ':0080/a', '/"<>`{}|\'[]@:;=&$,!~', '/\\ud800', '/\\u007f\\u0001',
    '/a/\\\\..\\\\b', '/..a/.b/...'].map((tail) => STORAGE + tail.replace('"', '\\"')),
  'http://metaframe-asman-test.s3.us-west-1.amazonaws.com/a?x', 'https://METAFRAME-asman-test.s3.us-west-1.amazonaws.com/a?x',
];
const TYPES = ['"utf8"', '"json"', '"base64"', '"url"', '"key"', 'null', '"URL"', '1', '""'];
const ref = () => {
  const parts = [];
  const url = random() < 0.4;
  if (url || random() < 0.8) parts.push(member('type', url ? '"url"' : one(TYPES)));
  if (random() < 0.95) parts.push(member('value', url ? `"${one(URLS)}"` : anything(2)));
  if (random() < 0.3) parts.push(member('hash', string()));
  if (random() < 0.1) parts.push(member(one(KEYS), anything(1)));
  return `{${parts.sort(() => random() - 0.5).join(',')}}`;
};
const FIELDS = {
  image: () => one(['"alpine:3.20"', '""', 'null', string()]),
  command: () => one(['"echo hi"', '""', 'null', '["sh","-c","x"]', '[]', string()]),
  entrypoint: () => one(['null', '["sh"]', string()]),
  v: () => one(['1', '1.0', 'null', number()]),
  workdir: () => one(['""', 'null', '"/work"', string()]),
  shmSize: () => one(['"2g"', 'null', number()]),
  maxDuration: () => one(['"10m"', '0', 'false', 'null', number()]),
  tags: () => one(['[]', 'null', '["b","a"]', `[${string()}]`]),
  build: () => one(['{}', 'null', '[]', '5', '"text"', object(8, () => one([...BUILD, 'extra']), () => anything(1))]),
  requirements: () => one(['{}', 'null', 'true', object(6, () => one([...REQUIREMENTS, 'extra']), () => one([number(), 'null', '"4g"']))]),
  env: () => one(['{}', 'null', '""', '"a\u{1f600}"', '["a","b"]', object(8, () => one(KEYS), () => one([string(), string(), 'null', number()]))]),
  inputs: () => one(['{}', 'null', '7', '"ab"', object(5, () => one([...KEYS, 'a/b.txt', '../x']), ref), `[${ref()}]`]),
  configFiles: () => one(['{}', 'null', object(4, () => one([...KEYS, '/etc/app.conf']), ref)]),
  control: () => anything(1),
  debug: () => 'true',
  unknownField: () => anything(2),
};
const definition = () => {
  const names = Object.keys(FIELDS).filter(() => random() < 0.4);
  if (random() < 0.2 && names.length > 0) names.push(one(names)); // A key twice.
  return `{${names.sort(() => random() - 0.5).map((name) => member(name, FIELDS[name]())).join(',')}}`;
};

const definitions = ['{}', ' { } ', '[]', '"text"', '5', 'true'];
for (const text of NUMBERS) definitions.push(`{"inputs":{"n":{"type":"json","value":${text}}}}`);
for (const text of CHARS) definitions.push(`{"command":"${text}"}`);
for (const text of KEYS) definitions.push(`{"env":{"m":"1","${text}":"2","A":"3"}}`);
for (const text of URLS) definitions.push(`{"inputs":{"u":{"type":"url","value":"${text}"}}}`);
for (const depth of [1, 10, 60, 120]) definitions.push(`{"inputs":{"d":{"value":${nested(depth)}}}}`);
while (definitions.length < 700) definitions.push(definition());

// --- odd JSON, refused or not ------------------------------------------------------------------------------------

const REFUSED = [
  '', ' ', '\\ufeff{}', '{', '}', '[', ']', '[1,]', '[,1]', '[1 2]', '{"a":1,}', '{,}', '{"a"}', '{"a":}', '{a:1}', "{'a':1}", "'a'", '01', '-', '+1', '.5',
  '1.', '1.e1', '1e', '1e+', '-01', '0x1', '1_000', 'NaN', 'Infinity', '-Infinity', 'nul', 'nulll', 'True', 'undefined', '"', '"a', '"\\\\"', '"\\\\x41"',
  '"\\\\u12"', '"\\\\u123g"', '"\\\\U0041"', '"\\\\\'"', '"\\u0000"', '"\\n"', '"\\u001f"', '"\\t"', '1 1', '{} x', '[1]]', '\\u00a01', '\\u000b1', '\\u000c1',
  '/*c*/1', '// c\\n1', '1//', '--1', '- 1', '"a"b', '["a"', '{"a":1', '{"a":1 "b":2}', '[1;2]', '\\u20281', '"\\\\ud83d\\\\u"', '"\\\\ud83d\\\\uzzzz"',
].map((text) => JSON.parse(`"${text.replaceAll('"', '\\"')}"`));
const texts = [...REFUSED, ...NUMBERS, ...CHARS.map((text) => `"${text}"`), ' \t\r\n1 \t\r\n', '{"b":1,"a":2,"b":3,"1":4,"0":5,"a":6}'];
for (let index = 0; index < 60; index += 1) texts.push(`[${Array.from({ length: 4 }, number).join(',')},${tie()},${tie()}]`);
while (texts.length < 400) {
  const text = anything(3);
  texts.push(text);
  // Most cuts and swaps are refused, and some are not.
  const at = below(text.length + 1);
  if (!/[^\x00-\x7f]/.test(text)) texts.push(text.slice(0, at) + one(['', ',', '"', '}', '\\', '0', 'e']) + text.slice(at + below(2)));
}

// --- out ---------------------------------------------------------------------------------------------------------

const ascii = (value) =>
  JSON.stringify(value).replace(/[^\x20-\x7e]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
const lines = (list) => list.map((line) => `${ascii(line)}\n`).join('');

const jobIds = definitions.map((text) => {
  const hashedText = canonical(hashed(JSON.parse(text)));
  return { definition_text: text, canonical: hashedText, id: createHash('sha256').update(hashedText).digest('hex') };
});
const json = texts.map((text) => {
  try {
    const value = JSON.parse(text);
    return { text, stringified: JSON.stringify(value), canonical: canonical(value) };
  } catch {
    return { text, refused: true };
  }
});
writeFileSync('job_ids.jsonl', lines(jobIds));
writeFileSync('json.jsonl', lines(json));
