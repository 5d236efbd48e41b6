// Grafana's types for what deploy/grafana/source generates, without what it does not use: a
// misspelt or misplaced key is an error. `test_dashboard_types.py` compiles each dashboard with it.
import type {
  AnnotationQuery,
  Dashboard,
  DataQuery,
  FieldConfig,
  FieldConfigSource,
  Panel,
  RowPanel,
  VariableModel,
} from '@grafana/schema';
import type * as Stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts';
import type * as TimeSeries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts';

// JSON has the values of enums, and no names of them.
type Plain<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends Array<infer E>
      ? Array<Plain<E>>
      : T extends object
        ? { [K in keyof T]: Plain<T[K]> }
        : T;

// The package has no type for queries to Prometheus.
type PrometheusQuery = Plain<DataQuery> & {
  expr: string;
  interval?: string;
  editorMode?: 'code' | 'builder';
  legendFormat?: string;
  instant?: boolean;
  range?: boolean;
};

// Grafana adds options that are absent from its defaults.
type QueryPanel<Type extends string, Options, Custom> = Omit<
  Plain<Panel>,
  'type' | 'options' | 'targets' | 'fieldConfig'
> & {
  type: Type;
  options: Partial<Plain<Options>>;
  targets: PrometheusQuery[];
  fieldConfig: Omit<Plain<FieldConfigSource>, 'defaults'> & {
    defaults: Omit<Plain<FieldConfig>, 'custom'> & { custom?: Plain<Custom> };
  };
};

type Annotation = Omit<Plain<AnnotationQuery>, 'target'> & {
  target: PrometheusQuery;
  titleFormat: string;
  textFormat: string;
};

export type OurDashboard = Omit<Plain<Dashboard>, 'panels' | 'annotations' | 'templating'> & {
  panels: Array<
    | Plain<RowPanel>
    | QueryPanel<'timeseries', TimeSeries.Options, TimeSeries.FieldConfig>
    | QueryPanel<'stat', Stat.Options, never>
  >;
  annotations: { list: Annotation[] };
  templating: { list: Array<Plain<VariableModel>> };
};
