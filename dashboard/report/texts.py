"""Every text of the report, in both languages side by side; nothing that a reader sees is written anywhere else.

`TEXTS`: key, English, Japanese. `SAID`: what the dashboard's figures write, as the report says it in plain English and
in Japanese; a placeholder takes whatever stands there, and that is said anew in its turn.
"""

from __future__ import annotations

LANGUAGES = ("en", "ja")

TEXTS: dict[str, tuple[str, str]] = {
    # the head
    "title": ("Wind tunnel report: {study}", "風洞レポート：{study}"),
    "eyebrow": ("Wind tunnel report", "風洞レポート"),
    "what": (
        "Before a big language model is trained, many small ones are trained to find out how. "
        "This page says what they showed.",
        "大きな言語モデルを学習する前に、小さなモデルを数多く学習して、適した学習方法を調べます。このページはその結果をまとめたものです。",
    ),
    "based": (
        "It rests on {n} measurements of small models, made from {first} to {last}.",
        "{first} から {last} までに小型モデルで行った {n} 件の測定に基づいています。",
    ),
    "running": (
        "Small models are being trained at this moment; the numbers below will change.",
        "現在も小型モデルを学習中です。以下の数値は変わることがあります。",
    ),
    "older": (
        "There are newer measurements than this forecast rests on; “{command}” renews it.",
        "この予測の後に新しい測定が加わっています。「{command}」で更新できます。",
    ),
    "problems": (
        "Part of this study's folder could not be read, and is left out:",
        "このスタディのフォルダには読み取れない部分があり、それを除いて作成しました：",
    ),
    "no_question": ("The question could not be read", "問いを読み取れませんでした"),
    "date": ("{year}-{month}-{day} {time} UTC", "{year}年{month}月{day}日 {time} UTC"),
    # states
    "state_nothing": ("not begun", "未開始"),
    "state_measuring": ("measuring", "測定中"),
    "state_measured": ("measured, no forecast yet", "測定済み・予測はまだ"),
    "state_judged": ("judged", "判定済み"),
    "state_compared": ("compared", "比較済み"),
    "state_forecast": ("forecast made", "予測済み"),
    "state_inside": ("forecast checked: it held", "検証済み：予測区間内"),
    "state_outside": ("forecast checked: it missed", "検証済み：予測区間外"),
    "state_diverged": ("the full-size run broke down", "本番の学習が発散"),
    # the answer
    "h_answer": ("The answer", "結論"),
    "answer_nothing": (
        "There is no answer yet: no model has been trained.",
        "まだ結論はありません。学習の終わったモデルがありません。",
    ),
    "answer_measuring": (
        "There is no answer yet: {done} of {planned} planned trainings are finished.",
        "まだ結論はありません。計画した {planned} 件の学習のうち {done} 件が終わっています。",
    ),
    "answer_part": (
        "There is no answer yet: the small models are only partly trained.",
        "まだ結論はありません。小型モデルの学習は途中です。",
    ),
    "answer_measured": (
        "All small models are trained. What they say about {target} has not been worked out yet.",
        "小型モデルの学習はすべて終わりました。{target} についての予測はまだ計算していません。",
    ),
    "answer_judged": (
        "This study asks of each setting: does the value that is best for small models still serve larger ones?",
        "このスタディでは、小型モデルで最適だった値が大きなモデルでもそのまま使えるかを、設定ごとに調べました。",
    ),
    "answer_compared": (
        "All models of this study are trained. It compares them with each other, and forecasts no larger one.",
        "このスタディのモデルの学習はすべて終わりました。モデルどうしを比べるもので、より大きなモデルの予測はしません。",
    ),
    "answer_best": (
        "The best small model so far ({shape}, learning rate {lr}) reached a loss of {loss} nats per token.",
        "これまでで最も良い小型モデル（{shape}、学習率 {lr}）の損失は {loss} nats/トークンです。",
    ),
    "answer_train": (
        "Train {target} with a peak learning rate of {lr}, and expect a final loss of {forecast} nats per token.",
        "{target} は最大学習率 {lr} で学習してください。最終的な損失は {forecast} nats/トークンと予測します。",
    ),
    "answer_interval": (
        "The loss should lie between {low} and {high}: nine out of ten such intervals are meant to hold.",
        "損失は {low} から {high} の間に入る見込みです（90% 予測区間。このような区間は 10 回に 9 回当たるように作られています）。",
    ),
    "answer_written": (
        "The forecast was written down on {date}. What {target} reaches in truth is not known yet.",
        "この予測は {date} に登録されました。{target} の実際の損失はまだわかっていません。",
    ),
    "answer_before": (
        "The forecast was written down on {date}, before the first training step of {target}.",
        "この予測は、{target} の学習が始まる前の {date} に登録されました。",
    ),
    "answer_inside": (
        "{target} was then really trained, and reached {measured}: inside the interval, {error}% off the forecast.",
        "その後 {target} を実際に学習したところ、損失は {measured} でした。予測区間の内側で、予測との差は {error}% です。",
    ),
    "answer_outside": (
        "{target} was then really trained, and reached {measured}: outside the interval, {error}% off the forecast.",
        "その後 {target} を実際に学習したところ、損失は {measured} でした。予測区間の外側で、予測との差は {error}% です。",
    ),
    "answer_diverged": (
        "{target} was then really trained, and its training broke down: these settings are not safe at its size.",
        "その後 {target} を実際に学習したところ、学習が発散しました。この設定は、この大きさでは安全ではありません。",
    ),
    "card_forecast": ("Loss, forecast", "損失（予測）"),
    "card_measured": ("Loss, measured", "損失（実測）"),
    "card_inside": ("inside the interval", "予測区間の内側"),
    "card_outside": ("outside the interval", "予測区間の外側"),
    "card_interval": ("90%: {low} to {high}", "90% 区間：{low} ～ {high}"),
    "card_lr": ("Peak learning rate", "最大学習率"),
    "card_size": ("Size of {target}", "{target} の大きさ"),
    "card_size_note": (
        "parameters; {width} wide, {depth} layers, trained on {tokens} tokens",
        "パラメータ（幅 {width}、{depth} 層、{tokens} トークンで学習）",
    ),
    "card_reach": ("Compute, against the largest small model", "最大の小型モデルに対する計算量"),
    "card_reach_value": ("{ratio} times", "{ratio} 倍"),
    "unit": (
        "Loss is in nats per token: how surprised the model is by text that it has not seen. Lower is better.",
        "損失の単位は nats/トークンで、未知の文章に対するモデルの「驚き」の大きさを表します。小さいほど良い値です。",
    ),
    # the figures
    "h_figures": ("What the small models showed", "小型モデルからわかったこと"),
    "how_to_read": ("How to read this: {text}", "図の見方：{text}"),
    "law_title": (
        "From the small models to {target}: {value} ({low} to {high})",
        "小型モデルから {target} へ：予測 {value}（{low} ～ {high}）",
    ),
    "law_title_measured": (
        "From the small models to {target}: forecast {value}, measured {measured}",
        "小型モデルから {target} へ：予測 {value}、実測 {measured}",
    ),
    "law_read": (
        "each mark is a small model with its best learning rate; bigger models stand further right, better ones lower. "
        "The line continues those that were trained as long as {target} ({d} tokens) to its size. "
        "The diamond is the forecast, its bar the 90% interval, and a star is what was measured afterwards.",
        "各点は、最適な学習率で学習した小型モデルです。右ほど大きく、下ほど良いモデルです。"
        "線は、{target} と同じ長さ（{d} トークン）学習したモデルの傾向を、その大きさまで延ばしたものです。"
        "ひし形が予測、縦棒が 90% 予測区間、星が後から測った値です。",
    ),
    "valleys_title": (
        "The best learning rate {along_d}, and {along_n}",
        "最適な学習率は、{along_d}。また、{along_n}",
    ),
    "d_falls": ("falls the longer a model is trained", "学習が長いほど小さくなります"),
    "d_rises": ("rises the longer a model is trained", "学習が長いほど大きくなります"),
    "d_still": ("does not clearly depend on how long a model is trained", "学習の長さによる明確な変化はありません"),
    "n_falls": ("falls with the model's size", "モデルが大きいほど小さくなります"),
    "n_rises": ("rises with the model's size", "モデルが大きいほど大きくなります"),
    "n_still": ("does not clearly depend on the model's size", "モデルの大きさによる明確な変化はありません"),
    "valleys_open": (
        "The best learning rate lies outside of what was tried",
        "最適な学習率は、試した範囲の外にあります",
    ),
    "valleys_plain": (
        "How the loss depends on the learning rate",
        "損失と学習率の関係",
    ),
    "valleys_read": (
        "each panel is a size of model (width × layers), each colour a length of training. "
        "A valley's lowest point is the best learning rate there: too small learns slowly, too large breaks things.",
        "各パネルはモデルの大きさ（幅×層数）、色は学習の長さを表します。谷の底がその条件で最適な学習率です。"
        "小さすぎると学習が進まず、大きすぎると学習が壊れます。",
    ),
    "progress_title": (
        "{n} small models are finished; the best reached {loss}",
        "小型モデル {n} 個が終わり、最良の損失は {loss} です",
    ),
    "progress_read": (
        "each mark is one finished small model, and the steps are the best so far.",
        "各点は終わった小型モデル 1 個、階段状の線はそれまでの最良値です。",
    ),
    "record_title": (
        "{inside} of {of} forecasts that were written down beforehand held",
        "事前に登録した {of} 件の予測のうち {inside} 件が 90% 予測区間に入りました",
    ),
    "record_read": (
        "each bar is a 90% interval that was written down before its model was measured, each mark what was measured. "
        "Nine marks in ten should lie on their bar.",
        "各縦棒は測定前に登録した 90% 予測区間、各点はその後の測定値です。10 点のうち 9 点が棒の上にあるのが理想です。",
    ),
    "verdicts_title": (
        "{setting}: does a small model's best value serve larger ones?",
        "{setting}：小型モデルの最適値は大きなモデルでも使えるか",
    ),
    "verdicts_read": (
        "a mark is how much worse a larger model gets by taking over the small one's best value, "
        "as a multiple of what counts as no difference. Where mark and bar end left of the dashed line, the value serves.",
        "各点は、小型モデルの最適値をそのまま使ったときに大きなモデルがどれだけ悪くなるかを、許容差に対する倍率で示します。"
        "点と横棒が破線より左に収まっていれば、その値はそのまま使えます。",
    ),
    # verdicts
    "told_setting": ("{setting}: {told}.", "{setting}：{told}。"),
    "told_over": ("{verdict} ({axes})", "{verdict}（{axes}）"),
    "told_and": (", ", "、"),
    "told_then": ("; ", "；"),
    "verdicts_caption": ("What carries over to larger models", "大きなモデルでも使える設定"),
    "col_over": ("when this grows", "大きくするもの"),
    "col_verdict": ("verdict", "判定"),
    "col_penalty": ("made worse by (90% bound)", "損失の悪化（90% 上限）"),
    "col_limit": ("allowed", "許容差"),
    "v_transfers": ("serves unchanged", "そのまま使える"),
    "v_drifts by this law": ("moves by a known law", "既知の法則に従って変わる"),
    "v_does not transfer": ("does not serve", "そのままでは使えない"),
    "v_refused": ("cannot be told yet", "まだ判断できない"),
    "penalty": ("{value}% ({high}%)", "{value}%（{high}%）"),
    "percent": ("{value}%", "{value}%"),
    "over_width": ("width of the model", "モデルの幅"),
    "over_depth": ("number of layers", "層数"),
    "over_D": ("length of training", "学習の長さ"),
    "over_B": ("batch size", "バッチサイズ"),
    # settings
    "h_settings": ("How to train {target}", "{target} の学習設定"),
    "settings_caption": ("Settings for {target}", "{target} の推奨設定"),
    "col_setting": ("setting", "設定"),
    "col_value": ("value", "値"),
    "col_interval": ("90% interval", "90% 区間"),
    "col_source": ("where it comes from", "根拠"),
    "settings_read": (
        "An interval is where the best value lies nine times in ten, if measuring were repeated.",
        "区間は、測定を繰り返したときに 10 回に 9 回、最適値が入る範囲です。",
    ),
    "settings_more": (
        "{n} more follow from these by rule {rule}; “tunnel export” writes all of them into a trainer's own file.",
        "このほかの {n} 項目は、規則 {rule} により上の値から決まります。「tunnel export」で、学習ツールの設定ファイルにすべて書き出せます。",
    ),
    "value_unit": ("{value} {unit}", "{value} {unit}"),
    "unit_tokens": ("tokens", "トークン"),
    "between": ("{low} to {high}", "{low} ～ {high}"),
    "tried": ("tried: {low} to {high}", "試した範囲：{low} ～ {high}"),
    "none": ("–", "–"),
    "from_study": ("set by the study", "スタディで指定"),
    "from_rule": ("follows from rule {rule}", "規則 {rule} から導出"),
    "from_readings": ("measured: {n} small models", "小型モデル {n} 個の測定"),
    "from_best": ("the best of {n} small models", "小型モデル {n} 個中の最良"),
    "from_else": ("derived", "ほかの値から導出"),
    "s_lr": ("Peak learning rate", "最大学習率"),
    "s_warmup": ("Warm-up", "ウォームアップ"),
    "s_decay": ("Final decay (part of training)", "最後の減衰（学習に占める割合）"),
    "s_decay_shape": ("Shape of the decay", "減衰の形"),
    "s_half_life": ("Half-life of the decay", "減衰の半減期"),
    "s_min_ratio": ("Last learning rate ÷ peak", "最終学習率 ÷ 最大学習率"),
    "s_batch_tokens": ("Batch size", "バッチサイズ"),
    "s_tokens": ("Length of training", "学習の長さ"),
    "s_weight_decay": ("Weight decay", "重み減衰"),
    "s_clip": ("Gradient clipping (norm)", "勾配クリッピング（ノルム）"),
    "s_beta1": ("Adam β₁", "Adam β₁"),
    "s_beta2": ("Adam β₂", "Adam β₂"),
    "s_eps": ("Adam ε", "Adam ε"),
    "s_aspect": ("Best width ÷ layers", "最適な幅 ÷ 層数"),
    # trust
    "h_trust": ("How far to trust it", "どこまで信頼できるか"),
    "trust_reach": (
        "{target} takes {ratio} times the computing of the largest small model. The further a forecast reaches, the wider its interval.",
        "{target} の計算量は、最大の小型モデルの {ratio} 倍です。予測が遠くまで及ぶほど、区間は広くなります。",
    ),
    "trust_holdouts": (
        "The law was tested on small models that it had not been shown: it missed them by at most {worst}%.",
        "法則に見せていない小型モデルで試したところ、誤差は最大 {worst}% でした。",
    ),
    "trust_record": (
        "{inside} of the study's {of} forecasts with a known outcome lay inside their 90% intervals.",
        "このスタディの予測で結果のわかっている {of} 件のうち、{inside} 件が 90% 予測区間に入りました。",
    ),
    "trust_few": (
        "That is fewer than honest 90% intervals allow: take the next ones for too narrow.",
        "これは 90% 予測区間として少なすぎます。次の区間も実際より狭いと考えてください。",
    ),
    "trust_forced": (
        "This recommendation was forced where the tunnel would have refused it.",
        "この推奨は、本来なら拒否されるところを強制的に出したものです。",
    ),
    "h_cautions": ("What would make it surer", "より確かにするには"),
    "detail": ("In detail: ", "詳細（英語）："),
    "about_edge": (
        "A best value lies at the edge of what was tried, or is not pinned down by it.",
        "最適値が、試した範囲の端にあるか、まだ絞り込めていません。",
    ),
    "about_fit": (
        "The forecast rests on too few measurements, or they disagree.",
        "予測の根拠となる測定が少ないか、互いに食い違っています。",
    ),
    "about_seeds": (
        "Each small model was trained once, so luck is hard to tell from skill.",
        "各小型モデルを 1 回しか学習していないため、偶然の差と本当の差を区別しにくくなっています。",
    ),
    "about_data": (
        "The text that is learned from repeats, or changes on the way.",
        "学習データが繰り返されるか、途中で変わります。",
    ),
    "about_drift": (
        "A setting was found on smaller runs, and may be another one at full size.",
        "小さな規模で求めた設定なので、本番の規模では最適値が変わる可能性があります。",
    ),
    "about_batch": (
        "What another batch size would do was not measured.",
        "バッチサイズを変えたときの影響は測定していません。",
    ),
    "about_shape": (
        "Another ratio of width to layers may do better.",
        "幅と層数の比を変えると、より良くなる可能性があります。",
    ),
    "about_forced": ("A check was overruled.", "確認の一つが強制的に省かれました。"),
    "about_else": ("One thing to know:", "注意点："),
    # cost
    "h_cost": ("What it cost", "かかった費用"),
    "cost_caption": ("Device time and money", "デバイスの使用時間と費用"),
    "col_what": ("for", "内訳"),
    "col_time": ("device time", "使用時間"),
    "col_money": ("cost", "費用"),
    "cost_small": ("The small models, all in all", "小型モデル（合計）"),
    "cost_lost": ("– of it idle, failed or cut off", "– うち待機・失敗・中断"),
    "cost_expected": ("{target}, expected", "{target}（見込み）"),
    "cost_measured": ("{target}, as trained", "{target}（実績）"),
    "cost_price": (
        "At the study's own price: {price} for an hour of one {device}.",
        "スタディで設定した単価（{device} 1 台、1 時間あたり {price}）で計算しています。",
    ),
    "cost_shared": (
        "Small models share the first part of their training: {share} of the tokens were trained "
        "that the same models take one by one.",
        "小型モデルは学習の前半を共有しているため、学習したトークン数は、1 個ずつ学習する場合の {share} です。",
    ),
    "cost_unknown": ("What it cost cannot be read from the folder.", "費用をフォルダから読み取れませんでした。"),
    "cost_nothing": ("Nothing yet.", "まだかかっていません。"),
    # next
    "h_next": ("What to do next", "次にすること"),
    "next_where": (
        "Commands are meant for the folder in which “{study}” lies.",
        "コマンドは「{study}」のあるフォルダで実行してください。",
    ),
    "next_plan": (
        "See what would be trained, how long it takes and what it costs:",
        "何を学習し、どれだけの時間と費用がかかるかを確かめる：",
    ),
    "next_sweep": ("Train the small models:", "小型モデルを学習する："),
    "next_resume": (
        "Go on with the small models (what is done is kept):",
        "小型モデルの学習を続ける（終わった分はそのまま使われます）：",
    ),
    "next_status": ("See how far they are:", "進み具合を見る："),
    "next_verdict": ("Work out what carries over to larger models:", "大きなモデルでも使える設定を判定する："),
    "next_compare": ("See what the models show side by side:", "モデルどうしの比較を見る："),
    "next_look": ("Look closer, in a browser:", "ブラウザで詳しく見る："),
    "next_recommend": ("Work out the settings, and write the forecast down:", "推奨設定を計算し、予測を登録する："),
    "next_export": ("Take the settings to your own trainer:", "推奨設定を学習ツールに書き出す："),
    "next_train": ("Or train {target} here:", "または、ここで {target} を学習する："),
    "next_check": ("Hold the forecast against what was measured:", "予測を実測と比べる："),
    "next_promote": (
        "Make these settings the ones that the next project starts from:",
        "この設定を、次の計画の出発点として採用する：",
    ),
    "next_why": (
        "See which further small models would narrow the forecast most:",
        "どの小型モデルを足せば予測区間が最も狭くなるかを調べる：",
    ),
    # words
    "h_words": ("Words", "用語"),
    "w_loss": ("Loss", "損失"),
    "w_loss_is": (
        "How badly a model predicts text that it has not seen, in nats per token. Differences of a percent are large.",
        "未知の文章の予測をモデルがどれだけ外すかを nats/トークンで表した値。1% の差でも大きな差です。",
    ),
    "w_small": ("Small model (proxy)", "小型モデル（プロキシ）"),
    "w_small_is": (
        "A cheap stand-in for the big model: the same kind, narrower and shallower.",
        "本番の大きなモデルの代わりに学習する、同じ種類で幅と層数の小さい安価なモデル。",
    ),
    "w_lr": ("Learning rate", "学習率"),
    "w_lr_is": (
        "How large a step the training takes each time; the setting that matters most. Its peak is given here.",
        "1 回の更新でモデルをどれだけ変えるかを決める値。最も影響の大きい設定で、ここでは最大値を示します。",
    ),
    "w_warmup": ("Warm-up and decay", "ウォームアップと減衰"),
    "w_warmup_is": (
        "The learning rate rises from zero at first (warm-up), stays, and falls to the end (decay).",
        "学習率は最初にゼロから上がり（ウォームアップ）、一定に保たれ、最後に下がります（減衰）。",
    ),
    "w_law": ("Law", "スケーリング則"),
    "w_law_is": (
        "A formula for how the loss falls as models grow, fitted to the small ones and continued to the big one.",
        "モデルが大きくなるにつれて損失がどう下がるかを表す式。小型モデルに当てはめ、大きなモデルまで延ばします。",
    ),
    "w_interval": ("90% interval", "90% 予測区間"),
    "w_interval_is": (
        "Two numbers between which the true value should lie nine times out of ten.",
        "真の値が 10 回に 9 回は入るはずの範囲。",
    ),
    "w_forecast": ("Forecast, written down", "予測の登録"),
    "w_forecast_is": (
        "Put into a file that shows every later change, before the model is trained: it cannot be fitted afterwards.",
        "モデルを学習する前に、後から変更すればわかるファイルに予測を書き込むこと。結果に合わせて直すことはできません。",
    ),
    "w_token": ("Token", "トークン"),
    "w_token_is": (
        "A piece of text, the unit in which training is counted.",
        "文章を区切った単位。学習の量はトークン数で数えます。",
    ),
    "w_parameters": ("Parameters", "パラメータ"),
    "w_parameters_is": (
        "The numbers that training sets; how many there are is a model's size (counted without the embedding).",
        "学習によって決まる数値。その個数がモデルの大きさです（埋め込み層を除いて数えます）。",
    ),
    # the foot
    "h_origin": ("Where this comes from", "このレポートについて"),
    "origin_study": ("Study", "スタディ"),
    "origin_hash": ("Fingerprint of the measurements", "測定値の指紋（ハッシュ）"),
    "origin_made": ("Made by", "作成"),
    "made_by": ("tunnel report, version {version}", "tunnel report（バージョン {version}）"),
}

SAID: tuple[tuple[str, str, str], ...] = (
    # every figure
    ("loss (nats per token)", "loss (nats per token)", "損失（nats/トークン）"),
    ("N (non-embedding parameters)", "size of the model (parameters)", "モデルの大きさ（パラメータ数）"),
    # the law
    ("the law's 90% interval", "the law's 90% interval", "法則の 90% 予測区間"),
    ("law “{law}” at D = {d}", "law, {d} tokens", "法則（{d} トークン）"),
    ("valleys’ minima at D = {d}", "small models, {d} tokens", "小型モデル（{d} トークン）"),
    ("forecast for the target, 90% interval", "forecast with its 90% interval", "予測と 90% 予測区間"),
    ("measured", "measured", "実測"),
    # valleys
    ("D = {d} tokens", "{d} tokens", "{d} トークン"),
    ("fitted minimum", "lowest point", "谷の底"),
    ("lr (per step, at the base shape)", "learning rate", "学習率"),
    ("loss above the valley's minimum (%)", "loss above the lowest point (%)", "谷の底からの損失の増加（%）"),
    ("loss above the best lr's mean (%)", "loss above the best (%)", "最良からの損失の増加（%）"),
    # progress
    (
        "reading (number, in the order they finished)",
        "small models, in the order they finished",
        "小型モデル（終わった順）",
    ),
    ("best of {stage} so far", "best of “{stage}” so far", "「{stage}」の最良値"),
    # forecasts
    ("90% interval", "90% interval", "90% 予測区間"),
    ("rolling, {fate}", "small model, {fate}", "小型モデル（{fate}）"),
    ("target, {fate}", "full-size model, {fate}", "本番モデル（{fate}）"),
    ("counterfactual, {fate}", "other learning rates, {fate}", "別の学習率（{fate}）"),
    ("inside", "inside", "区間内"),
    ("outside", "outside", "区間外"),
    ("forecast (counted as they were registered)", "forecasts, in the order they were written down", "予測（登録順）"),
    ("measured ÷ forecast − 1 (%)", "measured, against the forecast (%)", "予測に対する実測の差（%）"),
    # verdicts
    ("transfers", "serves unchanged", "そのまま使える"),
    ("drifts by this law", "moves by a law", "法則に従って変わる"),
    ("does not transfer", "does not serve", "そのままでは使えない"),
    ("refused", "cannot be told", "判断できない"),
    (
        "{kind} (where there is no penalty, at the left edge)",
        "{kind} (at the left edge: no number)",
        "{kind}（左端：数値なし）",
    ),
    ("90% upper bound with its law", "with its law (90% bound)", "法則を使った場合（90% 上限）"),
    ("limit: 0.1%, or one seed's noise where that is more", "what counts as no difference", "許容差"),
    ("penalty ÷ limit", "made worse by, in multiples of what is allowed", "損失の悪化 ÷ 許容差"),
    ("rule over axis", "what grows", "大きくするもの"),
    ("{rule} over {axis}", "{axis} ({rule})", "{axis}（{rule}）"),
    ("width", "width", "幅"),
    ("depth", "layers", "層数"),
    ("D", "length", "長さ"),
    ("B", "batch", "バッチ"),
    # times
    ("{h} h {m} min", "{h} h {m} min", "{h} 時間 {m} 分"),
    ("{m} min {s} s", "{m} min {s} s", "{m} 分 {s} 秒"),
    ("{m} min", "{m} min", "{m} 分"),
    ("{s} s", "{s} s", "{s} 秒"),
    ("{d} days", "{d} days", "{d} 日"),
    ("{n} times", "{n} times", "{n} 倍"),
)
