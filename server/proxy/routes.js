// Decides by the headers alone whether a request is allowed: the route and the key.
import fs from 'fs';

const KEY_FILE = '/run/keys/api-key';
const LARGE_BYTES = 262144;

// To add a route: add a row. `open`: no key is required. Any other route is answered with 404.
const ROUTES = {
    '/health': {GET: 'model', open: true},
    '/v1/health': {GET: 'model', open: true},
    '/v1/models': {GET: 'model'},
    '/models': {GET: 'model'},
    '/metrics': {GET: 'inner'}, // metrics.js: of all models, or of the one that the query names
    '/props': {GET: 'model'},
    '/models/load': {POST: 'inner'}, // the web page asks for it when another model is chosen, and waits for the event
    '/models/sse': {GET: 'model'},
    '/v1/chat/completions': {POST: 'inner'},
    '/chat/completions': {POST: 'inner'},
    '/v1/completions': {POST: 'inner'},
    '/completions': {POST: 'inner'},
    '/completion': {POST: 'inner'},
    '/v1/responses': {POST: 'inner'},
    '/responses': {POST: 'inner'},
    '/v1/messages': {POST: 'inner'},
    '/v1/messages/count_tokens': {POST: 'inner'},
    '/v1/embeddings': {POST: 'inner'},
    '/embeddings': {POST: 'inner'},
    '/v1/rerank': {POST: 'inner'},
    '/tokenize': {POST: 'inner'},
    '/detokenize': {POST: 'inner'},
    '/apply-template': {POST: 'inner'},
};
// The files of llama-server's web page; without the page it serves none of them. They are open, as the page asks for the
// key by itself; the proxy shows its own, since llama-server knows the files that are built into it, and no others.
const PAGE = /^\/(index\.html|build\.json|[A-Za-z0-9_-]+\.(js|mjs|css|svg|ico|png|webp|webmanifest)|_app\/[A-Za-z0-9_\/.-]+\.(js|mjs|css|json|svg|png|webp|wasm|ttf|woff2?))?$/;
const PAGE_ROUTE = {GET: 'model', open: true};
const THIS_MACHINE = /^(localhost|127(\.\d{1,3}){3}|\[::1\]|host\.docker\.internal)(:\d+)?$/i;

// The upstream that answers, or the status that refuses.
function way(r) {
    const route = Object.hasOwn(ROUTES, r.uri) ? ROUTES[r.uri] : PAGE.test(r.uri) ? PAGE_ROUTE : undefined;
    if (process.env.API_KEY === 'off') {
        // against DNS rebinding: a web page whose host name resolves to this machine sends that name as Host
        if (!THIS_MACHINE.test(r.headersIn.Host || '') && !isPrometheus(r)) return '403';
    } else if (!(route && route.open) && !hasKey(r)) {
        return '401';
    }
    if (!route) return '404';
    const isGet = r.method === 'GET' || r.method === 'HEAD';
    const found = route[isGet ? 'GET' : r.method] || '405';
    return isGet && found === 'model' && !route.open && r.variables.arg_model ? 'inner' : found; // which checks the name
}

// compose.yaml's Prometheus, which knows the proxy by its service's name.
const isPrometheus = (r) => r.uri === '/metrics' && r.headersIn.Host === 'proxy:8080';

function hasKey(r) {
    const bearer = /^Bearer (.+)$/.exec(r.headersIn.Authorization || '');
    const given = bearer ? bearer[1] : r.headersIn['X-Api-Key'];
    return Boolean(given) && keys(r).includes(given);
}

function keys(r) {
    try {
        return fs.readFileSync(KEY_FILE, 'utf8').split('\n').filter((line) => line && line[0] !== '#');
    } catch (error) {
        r.error(`${KEY_FILE} cannot be read: ${error.message}`);
        return [];
    }
}

// What the model's server is shown.
function authorization(r) {
    const own = process.env.API_KEY !== 'off' && PAGE.test(r.uri) ? keys(r)[0] : undefined;
    return own ? `Bearer ${own}` : r.headersIn.Authorization || '';
}

// Only the model's name is passed on, by which llama-server's router chooses among several models, and whether it may
// load it for that.
function query(r) {
    const {arg_model: name, arg_autoload: autoload} = r.variables;
    const loading = autoload === 'false' ? '&autoload=false' : '';
    return name ? `?model=${name}${loading}` : '';
}

function large(r) {
    const length = r.headersIn['Content-Length'];
    const isLarge = length === undefined ? 'Transfer-Encoding' in r.headersIn : Number(length) > LARGE_BYTES;
    return isLarge ? r.variables.remote_addr : '';
}

export default {way, query, authorization, large};
