// The metrics of every loaded model in one answer, each line with the name of its model. llama-server's router answers
// for one model at a time, and would load it for that.
import checks from 'checks.js';

const TYPE = 'text/plain; version=0.0.4; charset=utf-8';
const LOADED = '# HELP quantyard_model_loaded Whether the model is loaded.\n# TYPE quantyard_model_loaded gauge';

async function answer(r) {
    if (r.variables.arg_model) return checks.check(r); // those of one model, as llama-server writes them
    const listed = await r.subrequest('/served', {method: 'GET'});
    if (listed.status !== 200) return r.return(listed.status < 500 ? listed.status : 503);
    const found = await Promise.all(JSON.parse(listed.responseText).data.map((model) => metricsOf(r, model)));
    r.headersOut['Content-Type'] = TYPE;
    r.return(200, merged(found));
}

// `text`: undefined if the model is not loaded.
async function metricsOf(r, {id, status}) {
    if (status && status.value !== 'loaded') return {id};
    const reply = await r.subrequest('/metrics-of', {method: 'GET', args: `model=${encodeURIComponent(id)}&autoload=false`});
    return {id, text: reply.status === 200 ? reply.responseText : undefined};
}

// The lines of one metric stand together, below one description.
function merged(models) {
    const metrics = new Map([['quantyard_model_loaded', {about: LOADED, samples: []}]]);
    for (const {id, text} of models) {
        const label = `model=${JSON.stringify(id)}`;
        metrics.get('quantyard_model_loaded').samples.push(`quantyard_model_loaded{${label}} ${text === undefined ? 0 : 1}`);
        for (const [name, {about, samples}] of parsed(text || '')) {
            if (!metrics.has(name)) metrics.set(name, {about: about.join('\n'), samples: []});
            metrics.get(name).samples.push(...samples.map((line) => labelled(line, label)));
        }
    }
    return [...metrics.values()].map(({about, samples}) => `${[about, ...samples].filter(Boolean).join('\n')}\n`).join('');
}

function parsed(text) {
    const metrics = new Map();
    for (const line of text.split('\n')) {
        const found = /^(?:# (?:HELP|TYPE) )?([a-zA-Z_:][\w:]*)/.exec(line);
        if (!found) continue;
        if (!metrics.has(found[1])) metrics.set(found[1], {about: [], samples: []});
        metrics.get(found[1])[line[0] === '#' ? 'about' : 'samples'].push(line);
    }
    return metrics;
}

function labelled(line, label) {
    const brace = line.indexOf('{'), end = line.indexOf(' ');
    if (brace >= 0 && (end < 0 || brace < end)) return `${line.slice(0, brace + 1)}${label},${line.slice(brace + 1)}`;
    return `${line.slice(0, end)}{${label}}${line.slice(end)}`;
}

export default {answer};
